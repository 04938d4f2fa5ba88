"""What the tests of the tasks share: toy targets, both tasks of stage two by name, a quiet trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dasnet_lightning.callbacks import AtomicCheckpointIO
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.tasks.semantic import SemanticTask
from toy import make_target

BOXES = [[2.0, 2, 14, 14], [16, 16, 30, 28]]
TARGETS = {
    "all masks": make_target(BOXES, [1, 2]),
    "one mask": make_target(BOXES, [1, 2], has_mask=[True, False]),
    "no mask": make_target(BOXES, [1, 2], has_mask=[False, False]),
    "no object": make_target([], []),
}
NAMES = ("background", "a", "b")
TASKS: dict[str, Callable[..., SegmentationTask]] = {"semantic": SemanticTask, "instance": InstanceTask}
ADAM = OptimizerConfig("adamw", lr=3e-3, schedule="constant", double_bias=False)


def build_task(kind: str, **options: Any) -> SegmentationTask:
    torch.manual_seed(0)
    return TASKS[kind](3, NAMES, **{"detector": "toy", "optimizer": ADAM} | options)


def quiet(task: SegmentationTask) -> SegmentationTask:
    """The task with steps that work outside a trainer; `logged` holds what it logged."""
    task.logged = {}
    task.log_dict = lambda values, **options: task.logged.update(values)
    return task


def gradients(task: SegmentationTask) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in task.named_parameters() if parameter.requires_grad}


def trainer(tmp_path: Path, steps: int, **options: Any) -> L.Trainer:
    quietly = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        plugins=[AtomicCheckpointIO()],
        **quietly | options,
    )


def loader(batches: list[Any]) -> DataLoader:
    return DataLoader(batches, batch_size=None)
