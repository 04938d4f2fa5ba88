"""Weights by torchvision's name or from a local file, checked key by key before anything is copied.

They are those of a backbone, or those of a whole detector of torchvision's; a whole detector's class predictors stay
untrained where it knows another number of classes.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torchvision
from torch import Tensor, nn

from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.storage.reading import read_safetensors, read_tensors

FILE_SUFFIXES = (".pth", ".pt", ".safetensors")
SHOWN = 3


def load_state(weights: str, *models: str) -> dict[str, Tensor]:
    """The state dict that `weights` names: a local file, or weights of torchvision's `models` (downloaded by torchvision).

    Of several models the first one that has the name counts. Raises CheckpointError for a file that cannot be read,
    ConfigError for a name that torchvision does not have.
    """
    if Path(weights).suffix in FILE_SUFFIXES or Path(weights).exists():
        return load_state_file(Path(weights))
    known = []
    for model in models:
        choices = torchvision.models.get_model_weights(model)
        name = weights.removeprefix(f"{choices.__name__}.")
        if name in choices.__members__:
            entry = torchvision.models.get_weight(f"{choices.__name__}.{name}")
            return dict(entry.get_state_dict(progress=False, check_hash=True))
        known.append(f"for {model} ({', '.join(choices.__members__)})")
    raise ConfigError(
        f"backbone_weights is '{weights}', expected one of torchvision's names {' or '.join(known)} "
        f"or the path of a file ({', '.join(FILE_SUFFIXES)})"
    )


def load_state_file(path: Path) -> dict[str, Tensor]:
    """Read a state dict; a dict that holds it under "state_dict" or "model" is opened. Raises CheckpointError."""
    what = f"file of backbone weights ({', '.join(FILE_SUFFIXES)})"
    content = read_safetensors(path, what) if path.suffix == ".safetensors" else read_tensors(path, what)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict, expected a dict of names to tensors")
    return dict(content)


def select(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, with the prefix taken off."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def is_detector(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a whole detector of torchvision's, not of a backbone alone."""
    return any(key.startswith("backbone.") for key in state)


def upgrade_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The keys of torchvision's older detectors, whose single convolutions have become blocks, in today's form."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", key)
        renamed[re.sub(r"((?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)] = value
    return renamed


def load_pretrained(model: nn.Module, body: nn.Module, weights: str, names: tuple[str, str], predictor: str) -> None:
    """Fill a detector that has torchvision's keys, or its backbone's body alone: what the weights hold decides.

    names: torchvision's of the backbone and of the detector. predictor: pattern of the keys that depend on the classes.
    """
    state = load_state(weights, *names)
    if is_detector(state):
        fill_detector(model, upgrade_keys(state), weights, names[1], predictor)
        return
    fill(body, without_classifier(state), weights, f"the state dict of torchvision's {names[0]} or {names[1]}")


def without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a body takes of the state dict of a network for classification: MobileNet's `features`, ResNet but its `fc`."""
    return select(state, "features.") or {key: value for key, value in state.items() if not key.startswith("fc.")}


def fill_detector(model: nn.Module, state: Mapping[str, Tensor], source: str, name: str, predictor: str) -> None:
    """`fill`, but keys like `predictor` keep their own numbers where they answer for another number of classes."""
    fresh = {
        key: value
        for key, value in model.state_dict().items()
        if re.match(predictor, key) and key in state and _answers_for_others(state[key], value)
    }
    fill(model, {**state, **fresh}, source, f"the state dict of torchvision's {name}")


def _answers_for_others(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.ndim == ours.ndim and theirs.shape[1:] == ours.shape[1:] and theirs.shape != ours.shape


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str, expected: str) -> None:
    """Copy a state dict into a module whose keys must agree. BatchNorm's counters may be absent.

    source and expected are named in the CheckpointError that a missing, unexpected or misshapen key raises.
    """
    own = module.state_dict()
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    problems = [
        _sentence("missing", [key for key in own if key not in state and key not in optional]),
        _sentence("unexpected", [key for key in state if key not in own]),
        _sentence(
            "of another shape",
            [
                f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
                for key, value in own.items()
                if key in state and state[key].shape != value.shape
            ],
        ),
    ]
    if any(problems):
        raise CheckpointError(f"{source}: does not fit, expected {expected}; {'; '.join(filter(None, problems))}")
    module.load_state_dict({**own, **state})


def _sentence(kind: str, keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{kind}: {', '.join(keys[:SHOWN])}{more}" if keys else ""
