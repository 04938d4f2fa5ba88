"""Stops a training at a NaN or infinite loss, saves the step, and computes a saved step again."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dasnet_lightning.distributed import sum_over_ranks
from dasnet_lightning.errors import CheckpointError, TrainingError
from dasnet_lightning.tasks.checkpoints import read_checkpoint, without_weights
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.tasks.semantic import SemanticTask
from dasnet_lightning.types import Batch, Target

TASKS: Mapping[str, type[DetectionTask] | type[InstanceTask] | type[SemanticTask]] = {
    task_class.__name__: task_class for task_class in (DetectionTask, InstanceTask, SemanticTask)
}


class NaNGuard(Callback):
    """Stops on a NaN or infinite loss before the optimizer step and saves the step for replay.

    All ranks raise TrainingError together: if one left alone, the others would wait for it.

    Args:
        folder: where `nan-step-N-rank-R.pt` is written; None means the trainer's `default_root_dir`. The file holds the
            weights before the step, the hyper-parameters, and the batch as the network gets it. `replay_step` reads it.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._batch: Batch | None = None

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, batch_index: int) -> None:
        """Keep the batch until its loss is known."""
        self._batch = batch

    def on_before_backward(self, trainer: L.Trainer, module: Any, loss: Tensor) -> None:
        """Raise TrainingError if the loss of any rank is not finite."""
        not_finite = ~loss.detach().isfinite()
        if self._batch is None or not sum_over_ranks(not_finite.float()):
            return
        if not not_finite:
            raise TrainingError(
                f"the loss of step {trainer.global_step} is NaN or infinite on another rank, whose message names the images"
            )
        folder = Path(trainer.default_root_dir) if self.folder is None else self.folder
        path = folder / f"nan-step-{trainer.global_step}-rank-{trainer.global_rank}.pt"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(describe_step(module, self._batch), path)
        images = ", ".join(f"'{image_id}'" for image_id in self._batch.image_ids)
        raise TrainingError(
            f"the loss of step {trainer.global_step} is {float(loss.detach())}, for the images {images}; check their labels, "
            f"lower the learning rate or use precision 32-true; {path} holds the step (callbacks.nan_guard.replay_step)"
        )


def describe_step(task: DetectionTask | SegmentationTask, batch: Batch) -> dict[str, Any]:
    """Return a task and a batch as tensors and plain values, which can be read with `weights_only=True`."""
    targets = [
        {field.name: getattr(target, field.name) for field in fields(target) if field.name != "truth"}
        for target in batch.targets
    ]
    return {
        "kind": type(task).__name__,
        "hyper_parameters": dict(task.hparams),
        "state_dict": task.state_dict(),
        "batch": {"image_ids": list(batch.image_ids), "images": batch.images, "seeds": list(batch.seeds)},
        "targets": targets,
    }


def replay_step(path: str | Path) -> tuple[DetectionTask | SegmentationTask, Batch, Mapping[str, Tensor]]:
    """Compute the losses of a step that NaNGuard saved, on the CPU.

    Returns:
        The task with the weights before the step, the batch, and the losses by name.

    Raises:
        CheckpointError: the file is not a saved step.
    """
    content = read_checkpoint(path)
    if "kind" not in content or "targets" not in content:
        raise CheckpointError(f"{path}: not a step that NaNGuard saved, but a checkpoint")
    task = TASKS[content["kind"]](**_arguments(content["hyper_parameters"]))
    task.load_state_dict(content["state_dict"])
    saved_batch = content["batch"]
    targets = tuple(Target(**target) for target in content["targets"])
    batch = Batch(tuple(saved_batch["image_ids"]), saved_batch["images"], targets, tuple(saved_batch["seeds"]))
    task.train()
    losses = task.losses(batch) if isinstance(task, DetectionTask) else task.losses(batch)[0]
    return task, batch, losses


def _arguments(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that rebuild a task without reading weights.

    Keys with an underscore are LightningCLI's own.
    """
    arguments = {name: value for name, value in hyper_parameters.items() if not name.startswith("_")}
    network = arguments.get("network", arguments)
    without = {**network, "detector_options": without_weights(network["detector_options"])}
    return arguments | ({"network": without} if "network" in arguments else without)
