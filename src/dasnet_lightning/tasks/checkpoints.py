"""Checkpoints carry the whole model and its constructor's arguments; they are data, read with `weights_only=True`.

What the checkpoints of all tasks carry, and what is compared before Lightning fills a task from one.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

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
from dasnet_lightning.tasks.checkpoint_info import KEY, CheckpointInfo, check_classes, check_fits, is_ours, read_info

Options = TypeVar("Options")


class HasCheckpointInfo(Protocol):
    """A task, as far as a checkpoint is compared with it."""

    def checkpoint_info(self) -> CheckpointInfo: ...


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Read a checkpoint of one of our tasks, of this version's format or an older one.

    Raises CheckpointError that says what the file is instead: missing, damaged, foreign, code, or too new.
    """
    content = read_tensors(path)
    check_ours(content, path)
    return content


def check_ours(content: Any, source: object) -> None:
    """Raise CheckpointError where what was read is not from one of our tasks, or from a version that is too new."""
    if not isinstance(content, Mapping) or not is_ours(content):
        raise CheckpointError(f"{source}: not a checkpoint of dasnet_lightning, {describe_content(content)}")
    read_info(content, source)


def newest_good(path: Path, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from: `path`, or the one before it where `path` is damaged or gone; None where neither is.

    `warn` is given a line where the older one has to do. Raises CheckpointError where none that is there can be read.
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
    raise CheckpointError(f"{'; '.join(problems)}; none is left to continue from, delete what is there to start anew")


def sub_state(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries below `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_detector(detector: Detector, path: str | Path, class_names: Sequence[str] = ()) -> None:
    """Fill a detector, frozen or not, from a checkpoint of stage one, or from the detector of a whole stage two.

    Raises CheckpointError where the checkpoint holds another detector, another number of classes, or, where
    `class_names` (background first) are given, others.
    """
    content = read_checkpoint(path)
    state = content["state_dict"]
    check_classes(read_info(content, path), detector.num_classes, class_names, path)
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
        load_strictly(module, sub_state(state, f"{name}."), path, content)


def _thaw(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries as if the detector had never been frozen."""
    return {key.replace("detector.frozen.module.", "detector.", 1): value for key, value in state.items()}


def _inner(detector: Detector) -> nn.Module:
    return detector.detector if isinstance(detector, FrozenDetector) else detector


def load_strictly(
    module: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path, content: Mapping[str, Any]
) -> None:
    """`load_state_dict` with a sentence instead of a page."""
    check_state(module, state, path, content)
    module.load_state_dict(state)


def check_state(
    module: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path, content: Mapping[str, Any]
) -> None:
    """Raise CheckpointError where the entries of a module and of a checkpoint differ by name or shape."""
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


def load_checkpoint(task: HasCheckpointInfo, path: str | Path) -> None:
    """Fill a whole task from a checkpoint of its kind. Raises CheckpointError where it does not fit."""
    content = read_checkpoint(path)
    check_fits(content, task.checkpoint_info(), path, whole=False)
    assert isinstance(task, nn.Module)
    load_strictly(task, content["state_dict"], path, content)


def without_weights(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Detector options for a network whose weights come from a checkpoint: the backbone's file need not exist any more."""
    rest = {name: value for name, value in (options or {}).items() if name != "weights"}
    return {**rest, "backbone_weights": None}


def restore_options(kind: type[Options], given: Options | Mapping[str, Any] | None) -> Options:
    """Options as a record: given as one, read from a checkpoint (where they are plain values), or the defaults."""
    if given is None:
        return kind()
    return kind(**given) if isinstance(given, Mapping) else given


def write_info(identity: CheckpointInfo, checkpoint: dict[str, Any]) -> None:
    """Write into a checkpoint whose it is."""
    checkpoint[KEY] = identity.plain()


def check_loaded(task: L.LightningModule, own: CheckpointInfo, checkpoint: dict[str, Any]) -> None:
    """Raise CheckpointError, in a sentence and before anything is filled, where a trainer's checkpoint does not fit."""
    try:
        source = task.trainer.ckpt_path
    except RuntimeError:  # no trainer: `load_from_checkpoint` made the task of the checkpoint itself
        return
    check_ours(checkpoint, source)
    check_fits(checkpoint, own, source)
    check_state(task, checkpoint["state_dict"], str(source), checkpoint)
