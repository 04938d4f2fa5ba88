"""Checkpoints carry the whole model and its constructor's arguments; they are data, read with `weights_only=True`."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.models.dasnet import DASNet

Options = TypeVar("Options")


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Read a checkpoint of one of our tasks. Raises CheckpointError that says what the file is instead."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = f"{path}: refused: the file is not a checkpoint of tensors and plain values, and would run code"
        raise CheckpointError(message) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged or truncated, it is not a readable checkpoint") from error
    if not isinstance(content, Mapping) or "state_dict" not in content or "hyper_parameters" not in content:
        raise CheckpointError(f"{path}: not a checkpoint of dasnet_lightning (no state_dict with hyper_parameters)")
    return content


def sub_state(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries below `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_detector(detector: Detector, path: str | Path) -> None:
    """Fill a detector, frozen or not, from a checkpoint of stage one, or from the detector of a whole stage two.

    Raises CheckpointError where the checkpoint holds another detector or another number of classes.
    """
    content = read_checkpoint(path)
    state, saved = content["state_dict"], content["hyper_parameters"]
    if saved.get("num_classes") != detector.num_classes:
        raise CheckpointError(
            f"{path}: detects {saved.get('num_classes')} classes with background, expected {detector.num_classes}"
        )
    found = sub_state(state, "detector.") or sub_state(_thaw(sub_state(state, "model.")), "detector.")
    load_strictly(_inner(detector), found, path, content)


def load_network(
    model: DASNet, state: Mapping[str, torch.Tensor], path: str | Path, content: Mapping[str, Any]
) -> None:
    """Fill detector, decoder and head of stage two, whether the detector is or was frozen or not.

    state: the entries below "model." of the checkpoint `content`. Raises CheckpointError where they do not fit.
    """
    state = _thaw(state)
    for name, module in (("detector", _inner(model.detector)), ("decoder", model.decoder), ("head", model.head)):
        assert isinstance(module, nn.Module)
        load_strictly(module, sub_state(state, f"{name}."), path, content)


def _thaw(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries as if the detector had never been frozen."""
    return {key.replace("detector.frozen.module.", "detector.", 1): value for key, value in state.items()}


def _inner(detector: Detector) -> nn.Module:
    inner = detector.detector if isinstance(detector, FrozenDetector) else detector
    assert isinstance(inner, nn.Module)
    return inner


def load_strictly(
    module: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path, content: Mapping[str, Any]
) -> None:
    """`load_state_dict` with a sentence instead of a page."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    misshapen = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or unexpected or misshapen:
        saved = content["hyper_parameters"]
        first = (missing or unexpected or misshapen)[0]
        raise CheckpointError(
            f"{path}: does not fit: it holds detector '{saved.get('detector')}' for {saved.get('num_classes')} classes; "
            f"{len(missing)} entries missing, {len(unexpected)} unexpected, {len(misshapen)} of another shape (first: {first})"
        )
    module.load_state_dict(state)


def load_checkpoint(task: nn.Module, path: str | Path) -> None:
    """Fill a whole task from a checkpoint of its kind. Raises CheckpointError where it does not fit."""
    content = read_checkpoint(path)
    load_strictly(task, content["state_dict"], path, content)


def without_weights(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Detector options for a network whose weights come from a checkpoint: the backbone's file need not exist any more."""
    return {**(options or {}), "backbone_weights": None}


def restore_options(kind: type[Options], given: Options | Mapping[str, Any] | None) -> Options:
    """Options as a record: given as one, read from a checkpoint (where they are plain values), or the defaults."""
    if given is None:
        return kind()
    return kind(**given) if isinstance(given, Mapping) else given
