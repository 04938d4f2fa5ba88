"""Optimizer and learning rate schedule of both stages. The defaults are those of the paper (section 8)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import lr_scheduler

from dasnet_lightning.errors import ConfigError


@dataclass
class OptimizerConfig:
    """Optimizer and learning rate schedule of a task.

    Biases and the scales of normalization layers are never decayed.

    Attributes:
        name: "sgd" with momentum, or "adamw".
        lr: learning rate of the weights.
        momentum: momentum of "sgd".
        weight_decay: decay of the weights.
        double_bias: biases and scales learn at twice the rate (paper section 8).
        schedule: "constant"; "step" divides the rate by 10 at each of `steps`; "onecycle" rises for the first `warmup`
            share of the steps and then falls to zero along a cosine. "onecycle" needs the trainer's max_steps.
        steps: optimizer steps at which "step" divides the rate.
        warmup: share of the steps (0..1) in which "onecycle" rises.
        detector_rate: learning rate of the detector in joint training, as a multiple of the decoder's.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    double_bias: bool = True
    schedule: Literal["constant", "step", "onecycle"] = "step"
    steps: Sequence[int] = (15_000,)
    warmup: float = 0.1
    detector_rate: float = 0.1


def build_optimizers(
    config: OptimizerConfig, module: nn.Module, max_steps: int, slow: nn.Module | None = None
) -> dict[str, Any]:
    """Build optimizer and per-step schedule in the form that `configure_optimizers` returns.

    Args:
        config: optimizer and schedule.
        module: module whose trainable parameters are optimized.
        max_steps: optimizer steps of the training; only "onecycle" needs them.
        slow: part of `module` that learns at `detector_rate`.

    Raises:
        ConfigError: the schedule is "onecycle" and `max_steps` is not positive.
    """
    slow_parameters = [] if slow is None else [p for p in slow.parameters() if p.requires_grad]
    slow_ids = {id(parameter) for parameter in slow_parameters}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in slow_ids]
    groups = _groups(config, others, config.lr) + _groups(config, slow_parameters, config.lr * config.detector_rate)
    optimizer: torch.optim.Optimizer
    if config.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.lr)
    scheduler = _build_schedule(config, optimizer, max_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _groups(config: OptimizerConfig, parameters: Sequence[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    """Return the parameter groups: the weights, and separately the biases and scales."""
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    biases = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": weights, "lr": lr, "weight_decay": config.weight_decay},
        {"params": biases, "lr": lr * (2 if config.double_bias else 1), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _build_schedule(
    config: OptimizerConfig, optimizer: torch.optim.Optimizer, max_steps: int
) -> lr_scheduler.LRScheduler:
    if config.schedule == "constant":
        return lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if config.schedule == "step":
        return lr_scheduler.MultiStepLR(optimizer, milestones=list(config.steps), gamma=0.1)
    if max_steps <= 0:
        raise ConfigError("schedule 'onecycle' needs the length of the training: set the trainer's max_steps")
    rates = [group["lr"] for group in optimizer.param_groups]
    # the schedule is stepped once more after the last optimizer step
    return lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max_steps + 1, pct_start=config.warmup)
