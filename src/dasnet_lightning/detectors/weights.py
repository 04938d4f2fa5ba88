"""Backbone weights by torchvision's name or from a local file, checked key by key before anything is copied."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dasnet_lightning.errors import CheckpointError, ConfigError

FILE_SUFFIXES = (".pth", ".pt", ".safetensors")
SHOWN = 3


def load_state(weights: str, model: str) -> dict[str, Tensor]:
    """The state dict that `weights` names: a local file, or weights of torchvision's `model` (downloaded by torchvision).

    Raises CheckpointError for a file that cannot be read, ConfigError for a name that torchvision does not have.
    """
    if Path(weights).suffix in FILE_SUFFIXES or Path(weights).exists():
        return load_state_file(Path(weights))
    choices = torchvision.models.get_model_weights(model)
    name = weights.removeprefix(f"{choices.__name__}.")
    if name not in choices.__members__:
        known = ", ".join(choices.__members__)
        raise ConfigError(
            f"backbone_weights is '{weights}', expected one of torchvision's names for {model} ({known}) "
            f"or the path of a file ({', '.join(FILE_SUFFIXES)})"
        )
    entry = torchvision.models.get_weight(f"{choices.__name__}.{name}")
    return dict(entry.get_state_dict(progress=False, check_hash=True))


def load_state_file(path: Path) -> dict[str, Tensor]:
    """Read a state dict; a dict that holds it under "state_dict" or "model" is opened. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected backbone weights ({', '.join(FILE_SUFFIXES)})")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        # torch's own message advises to switch its safe loading off: it is not passed on
        raise CheckpointError(
            f"{path}: cannot be read as a file of tensors, it is damaged, foreign or holds code; "
            "get it again, or save its state dict with torch.save"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict, expected a dict of names to tensors")
    return dict(content)


def select(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, with the prefix taken off."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


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
