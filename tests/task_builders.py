"""What the tests of the tasks share: toy targets, both tasks of stage two by name, a quiet trainer."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dasnet_lightning.callbacks import AtomicCheckpointIO
from dasnet_lightning.tasks.config import EvaluationConfig, NetworkConfig, RecipeConfig
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
CONFIGS = {"network": NetworkConfig, "recipe": RecipeConfig, "evaluation": EvaluationConfig}
ADAM = OptimizerConfig("adamw", lr=3e-3, schedule="constant", double_bias=False)


def build_task(kind: str, **options: Any) -> SegmentationTask:
    """A task of the toy detector; options of network, recipe and evaluation are given by their own names."""
    torch.manual_seed(0)
    options = {"detector": "toy", "optimizer": ADAM} | options
    configs = {
        group: config_class(**{f.name: options.pop(f.name) for f in fields(config_class) if f.name in options})
        for group, config_class in CONFIGS.items()
    }
    return TASKS[kind](3, NAMES, **configs, **options)


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
