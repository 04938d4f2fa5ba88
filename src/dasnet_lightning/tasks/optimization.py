"""Optimizer and schedule of both stages, as configuration (paper section 8 is `sgd`, `step`, `double_bias`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import lr_scheduler

from dasnet_lightning.errors import ConfigError


@dataclass
class OptimizerConfig:
    """How a task optimizes.

    name: "sgd" with momentum, or "adamw". schedule: "constant", "step" (divided by 10 at each of `steps`), or "onecycle"
    (up for the first `warmup` share, then cosine to zero; needs the trainer's max_steps). double_bias: biases learn at
    twice the rate without decay (paper section 8). Biases and scales are never decayed under "adamw". detector_rate: in
    joint training the detector learns at this multiple of the rate.
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
    """What `configure_optimizers` returns: the optimizer over the trainable parameters, and its per-step schedule.

    slow: the part of `module` that learns at `detector_rate`.
    """
    slow_parameters = [] if slow is None else [p for p in slow.parameters() if p.requires_grad]
    held = {id(parameter) for parameter in slow_parameters}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in held]
    groups = _groups(config, others, config.lr) + _groups(config, slow_parameters, config.lr * config.detector_rate)
    optimizer: torch.optim.Optimizer
    if config.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.lr)
    scheduler = _build_schedule(config, optimizer, max_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _groups(config: OptimizerConfig, parameters: Sequence[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    """Weights, and biases and scales by themselves."""
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
        raise ConfigError("schedule 'onecycle' needs to know where it ends: set the trainer's max_steps")
    rates = [group["lr"] for group in optimizer.param_groups]
    # one step more than is taken: the schedule is asked for the rate after the last step as well
    return lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max_steps + 1, pct_start=config.warmup)
