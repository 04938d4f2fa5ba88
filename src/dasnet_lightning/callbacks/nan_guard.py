"""Stops where a loss is no number any more, before it reaches the weights, and keeps what is needed to see it again.

A training step kept as a file, and computed again: how a loss that is no number is looked into.
"""

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


class NaNGuard(Callback):
    """Raises TrainingError where a loss is infinite or not a number: names the images and writes a dump.

    Over several processes it raises in all of them, also where the loss of their own images is one: a process that leaves
    alone would keep the others waiting.

    folder: of the dump, `nan-step-N.pt`: the weights before that step, the hyper-parameters, the batch as the network
    saw it; None means the trainer's own. `callbacks.nan_guard.replay_step` computes the losses of a dump again.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._batch: Batch | None = None

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, batch_index: int) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: L.Trainer, module: Any, loss: Tensor) -> None:
        lost = ~loss.detach().isfinite()
        if self._batch is None or not sum_over_ranks(lost.float()):
            return
        if not lost:
            raise TrainingError(
                f"the loss of step {trainer.global_step} is no number in another process, its own message names the images"
            )
        folder = Path(trainer.default_root_dir) if self.folder is None else self.folder
        path = folder / f"nan-step-{trainer.global_step}-rank-{trainer.global_rank}.pt"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(describe_step(module, self._batch), path)
        images = ", ".join(f"'{image_id}'" for image_id in self._batch.image_ids)
        raise TrainingError(
            f"the loss of step {trainer.global_step} is {float(loss.detach())}, for the images {images}; look at their labels, "
            f"lower the learning rate or use precision 32-true; {path} holds the step (callbacks.nan_guard.replay_step)"
        )


Task = DetectionTask | SegmentationTask

KINDS: Mapping[str, type[DetectionTask] | type[InstanceTask] | type[SemanticTask]] = {
    kind.__name__: kind for kind in (DetectionTask, InstanceTask, SemanticTask)
}


def describe_step(task: Task, batch: Batch) -> dict[str, Any]:
    """A task and a batch as tensors and plain values: a checkpoint that can be read with `weights_only=True`."""
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


def replay_step(path: str | Path) -> tuple[Task, Batch, Mapping[str, Tensor]]:
    """The task, the batch and the losses by name of a step that `describe_step` kept, computed again on the CPU.

    Raises CheckpointError where the file is no such step.
    """
    content = read_checkpoint(path)
    if "kind" not in content or "targets" not in content:
        raise CheckpointError(f"{path}: not a step that was kept by NaNGuard, but a checkpoint")
    saved = dict(content["hyper_parameters"])
    saved["detector_options"] = without_weights(saved["detector_options"])
    task = KINDS[content["kind"]](**saved)
    task.load_state_dict(content["state_dict"])
    kept = content["batch"]
    targets = tuple(Target(**target) for target in content["targets"])
    batch = Batch(tuple(kept["image_ids"]), kept["images"], targets, tuple(kept["seeds"]))
    task.train()
    losses = task.losses(batch) if isinstance(task, DetectionTask) else task.losses(batch)[0]
    return task, batch, losses
