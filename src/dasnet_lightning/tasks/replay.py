"""A training step kept as a file, and computed again: how a loss that is no number is looked into."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.tasks.checkpoints import read_checkpoint, without_weights
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.tasks.semantic import SemanticTask
from dasnet_lightning.types import Batch, Target

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
