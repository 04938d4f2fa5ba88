"""Reading checkpoints of the tasks, checking that they fit, and filling networks from them.

A checkpoint holds the whole model and the hyper-parameters, which are the arguments of its task. Checkpoints are data: they
are read with `weights_only=True`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from torch import nn

from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.storage.file_kinds import describe_content
from dasnet_lightning.storage.reading import read_tensors
from dasnet_lightning.storage.writing import previous_of
from dasnet_lightning.tasks.checkpoint_info import (
    KEY,
    CheckpointInfo,
    check_classes,
    check_fits,
    is_ours,
    read_info,
    upgrade_hyper_parameters,
)


class HasCheckpointInfo(Protocol):
    """A task, as far as a checkpoint is compared with it."""

    def checkpoint_info(self) -> CheckpointInfo:
        """Return the description that the task's own checkpoints carry."""
        ...


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Read a checkpoint of a task, of this version's format or an older one.

    Returns:
        The content, with the hyper-parameters in this version's format.

    Raises:
        CheckpointError: the file is missing, damaged, of another program, in a newer format, or would run code.
    """
    content = read_tensors(path)
    check_ours(content, path)
    return {**content, "hyper_parameters": upgrade_hyper_parameters(content["hyper_parameters"])}


def check_ours(content: Any, source: object) -> None:
    """Raise CheckpointError if the content of a file is not a checkpoint of a task, or its format is too new."""
    if not isinstance(content, Mapping) or not is_ours(content):
        raise CheckpointError(f"{source}: not a checkpoint of dasnet_lightning, {describe_content(content)}")
    read_info(content, source)


def newest_good(path: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the checkpoint to continue from: `path`, or the previous one if `path` is damaged or missing.

    Args:
        path: the newest checkpoint.
        warn: called with one line if the previous checkpoint is used.

    Returns:
        None if neither file exists.

    Raises:
        CheckpointError: none of the existing files can be read.
    """
    problems = []
    for candidate in (path, previous_of(path)):
        if candidate == path or candidate.is_file():
            try:
                read_checkpoint(candidate)
            except CheckpointError as error:
                problems.append(str(error))
            else:
                if problems:
                    warn(f"{'; '.join(problems)}; continues from the one before, {candidate}")
                return candidate
    if not path.exists() and len(problems) == 1:
        return None
    raise CheckpointError(f"{'; '.join(problems)}; none is left to continue from, delete them to start again")


def sub_state(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the entries of a state dict below `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_detector(detector: Detector, path: str | Path, class_names: Sequence[str] = ()) -> None:
    """Fill a detector, frozen or not, from a checkpoint of either stage.

    Args:
        detector: the detector to fill.
        path: a checkpoint of stage one, or one of stage two, whose detector is taken.
        class_names: expected names, background first; () compares the number of classes alone.

    Raises:
        CheckpointError: the checkpoint holds another detector or other classes.
    """
    content = read_checkpoint(path)
    state = content["state_dict"]
    check_classes(read_info(content, path), detector.num_classes, class_names, path)
    detector_state = sub_state(state, "detector.") or sub_state(_unfreeze(sub_state(state, "model.")), "detector.")
    load_strictly(_unwrap(detector), detector_state, path, content)


def load_network(
    model: DASNet, state: Mapping[str, torch.Tensor], path: str | Path, content: Mapping[str, Any]
) -> None:
    """Fill detector, decoder and head. The detectors of model and checkpoint may be frozen or not.

    Args:
        model: the network to fill.
        state: entries of the checkpoint below "model.".
        path: the checkpoint, for messages.
        content: what the checkpoint holds, for messages.

    Raises:
        CheckpointError: the entries do not fit.
    """
    state = _unfreeze(state)
    for name, module in (("detector", _unwrap(model.detector)), ("decoder", model.decoder), ("head", model.head)):
        load_strictly(module, sub_state(state, f"{name}."), path, content)


def _unfreeze(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a network's state with the names of a detector that is not frozen."""
    return {key.replace("detector.frozen.module.", "detector.", 1): value for key, value in state.items()}


def _unwrap(detector: Detector) -> nn.Module:
    return detector.detector if isinstance(detector, FrozenDetector) else detector


def load_strictly(
    module: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path, content: Mapping[str, Any]
) -> None:
    """Call `load_state_dict` after `check_state`, whose message is one sentence."""
    check_state(module, state, path, content)
    module.load_state_dict(state)


def check_state(
    module: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path, content: Mapping[str, Any]
) -> None:
    """Raise CheckpointError if the entries of a module and of a checkpoint differ by name or shape."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    misshapen = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or unexpected or misshapen:
        saved = read_info(content, path)
        first = (missing or unexpected or misshapen)[0]
        raise CheckpointError(
            f"{path}: does not fit: it holds detector '{saved.detector}' for {saved.num_classes} classes; {len(missing)} "
            f"entries missing, {len(unexpected)} unexpected, {len(misshapen)} of another shape (first: {first})"
        )


def load_checkpoint(task: HasCheckpointInfo, path: str | Path) -> None:
    """Fill a whole task from a checkpoint of the same task. Raises CheckpointError if it does not fit."""
    content = read_checkpoint(path)
    check_fits(content, task.checkpoint_info(), path, whole=False)
    assert isinstance(task, nn.Module)
    load_strictly(task, content["state_dict"], path, content)


def without_weights(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return detector options that read no weights: those of a checkpoint follow, and their files may be gone."""
    rest = {name: value for name, value in (options or {}).items() if name != "weights"}
    return {**rest, "backbone_weights": None}


def write_info(info: CheckpointInfo, checkpoint: dict[str, Any]) -> None:
    """Write the description of a task into its checkpoint."""
    checkpoint[KEY] = info.to_dict()
    saved = checkpoint.get("hyper_parameters", {})
    if "network" in saved:
        # version 0.1.0 recognizes only checkpoints with this entry; then it reads the format and asks for an update
        checkpoint["hyper_parameters"] = {**saved, "detector": info.detector}


def check_loaded(task: L.LightningModule, own: CheckpointInfo, checkpoint: dict[str, Any]) -> None:
    """Raise CheckpointError if a checkpoint that a trainer loads does not fit, before any weight is copied."""
    try:
        source = task.trainer.ckpt_path
    except RuntimeError:  # without a trainer: `load_from_checkpoint` built the task from this checkpoint
        return
    check_ours(checkpoint, source)
    check_fits(checkpoint, own, source)
    check_state(task, checkpoint["state_dict"], str(source), checkpoint)
