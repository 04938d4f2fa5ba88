"""Loading of weights by torchvision's name or from a local file; all keys are checked before anything is copied.

The weights are those of a backbone or of a whole torchvision detector, whose class predictors `class_rows` adapts.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torchvision
from torch import Tensor, nn

from dasnet_lightning.detectors.class_rows import ClassHead
from dasnet_lightning.detectors.downloads import download_state
from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.storage.reading import read_safetensors, read_tensors

FILE_SUFFIXES = (".pth", ".pt", ".safetensors")
MAX_LISTED_KEYS = 3  # in an error message


def load_state(weights: str, *models: str) -> dict[str, Tensor]:
    """Load a state dict.

    Args:
        weights: path of a local file, or torchvision's name of weights, which torchvision downloads.
        models: torchvision's models whose weights are searched for the name, in this order.

    Raises:
        CheckpointError: the file cannot be read or downloaded.
        ConfigError: torchvision does not have weights of this name.
    """
    if Path(weights).suffix in FILE_SUFFIXES or Path(weights).exists():
        return load_state_file(Path(weights))
    expected = []
    for model in models:
        choices = torchvision.models.get_model_weights(model)
        name = weights.removeprefix(f"{choices.__name__}.")
        if name in choices.__members__:
            return download_state(torchvision.models.get_weight(f"{choices.__name__}.{name}"))
        expected.append(f"for {model} ({', '.join(choices.__members__)})")
    names = f"one of torchvision's names {' or '.join(expected)} or " if expected else ""
    raise ConfigError(
        f"the weights '{weights}' are unknown, expected {names}the path of a file ({', '.join(FILE_SUFFIXES)})"
    )


def load_state_file(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file; it may be stored under the key "state_dict" or "model".

    Raises:
        CheckpointError: the file cannot be read or does not hold a state dict.
    """
    expected = f"file of backbone weights ({', '.join(FILE_SUFFIXES)})"
    content = read_safetensors(path, expected) if path.suffix == ".safetensors" else read_tensors(path, expected)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: not a state dict, expected a dict that maps names to tensors")
    return dict(content)


def select(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the entries whose key has a prefix, and remove it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def is_detector(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a whole torchvision detector, not of a backbone alone."""
    return any(key.startswith("backbone.") for key in state)


def upgrade_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of torchvision's older detectors, whose single convolutions are blocks in newer versions."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", key)
        renamed[re.sub(r"((?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)] = value
    return renamed


def load_pretrained(model: nn.Module, body: nn.Module, weights: str, names: tuple[str, str], head: ClassHead) -> str:
    """Load weights into a detector with torchvision's keys, or only into the body of its backbone.

    Args:
        model: the detector.
        body: the body of its backbone.
        weights: path of a file or torchvision's name; they may be those of the detector or of the backbone.
        names: torchvision's names of the backbone and of the detector.
        head: the class predictors of the detector.

    Returns:
        A note on the class predictors.
    """
    state = load_state(weights, *names)
    if is_detector(state):
        return fill_detector(model, upgrade_keys(state), weights, f"torchvision's {names[1]}", head)
    fill(body, without_classifier(state), weights, f"the state dict of torchvision's {names[0]} or {names[1]}")
    return ""


def without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a classification network that its body has: MobileNet's `features`, ResNet without `fc`."""
    return select(state, "features.") or {key: value for key, value in state.items() if not key.startswith("fc.")}


def fill_detector(model: nn.Module, state: Mapping[str, Tensor], source: str, name: str, head: ClassHead) -> str:
    """Copy a whole detector's state dict into a detector as `fill` does, and its class predictors as `head` says.

    Returns:
        A note on the class predictors.
    """
    adapted, note = head.take_over(state, model.state_dict())
    fill(model, adapted, source, f"the state dict of {name}")
    return note


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str, expected: str) -> None:
    """Copy a state dict into a module whose keys must agree; BatchNorm's counters may be absent.

    Args:
        module: the module.
        state: the state dict.
        source: name of the weights, for the error message.
        expected: what the weights should be, for the error message.

    Raises:
        CheckpointError: a key is missing, unexpected or of the wrong shape.
    """
    own = module.state_dict()
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    problems = [
        _list_keys("missing", [key for key in own if key not in state and key not in optional]),
        _list_keys("unexpected", [key for key in state if key not in own]),
        _list_keys(
            "wrong shape",
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


def _list_keys(problem: str, keys: list[str]) -> str:
    more = f" and {len(keys) - MAX_LISTED_KEYS} more" if len(keys) > MAX_LISTED_KEYS else ""
    return f"{problem}: {', '.join(keys[:MAX_LISTED_KEYS])}{more}" if keys else ""
