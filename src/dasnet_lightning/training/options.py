"""Keyword arguments of `dasnet_lightning.train`, and the configuration that they make."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from dasnet_lightning.options import replace_options
from dasnet_lightning.training.config import RunConfig, TrainerSettings


class TrainOptions(TypedDict, total=False):
    """The keyword arguments of `dasnet_lightning.train`: the fields of `RunConfig` and of `TrainerSettings`."""

    task: Literal["semantic", "instance"]
    mask_budgets: tuple[str, ...]
    detector: str
    detector_options: Mapping[str, Any]
    weights: str
    backbone_weights: str | None
    detector_checkpoint: str | None
    decoder: str
    decoder_options: Mapping[str, Any]
    soft_attention: float
    image_size: int
    detector_steps: int
    steps: int
    joint_steps: int
    detector_batch_size: int
    batch_size: int
    detector_augmentation: Literal["ssd", "segment", "flip", "d4", "none"]
    detector_lr: float | None
    detector_ema: float | None
    held_out: float | None
    lr: float | None
    box_jitter: float
    score_threshold: float
    seed: int
    split_seed: int
    num_workers: int | None
    allow_missing: bool
    fix: Literal["error", "drop"]
    crowd: Literal["ignore", "object"]
    use_model_masks: bool
    accept_changes: bool
    feature_cache: str | None
    feature_cache_gb: float
    accelerator: str
    devices: int
    strategy: str
    num_nodes: int
    precision: str | None
    logger: Literal["csv", "wandb", "tensorboard"]
    project: str | None
    log_checkpoint: bool
    scale_lr: Literal["none", "linear"]
    checkpoint_every: int
    deterministic: bool


def build_config(data: str | Path, out: str | Path | None, options: Mapping[str, Any], source: str) -> RunConfig:
    """Return the resolved configuration of a run from its options by name.

    Args:
        data: the data set.
        out: the run folder; None for the default.
        options: fields of `RunConfig` and `TrainerSettings`.
        source: what the user wrote them for, named in error messages.

    Raises:
        ConfigError: an option is unknown, or its value has the wrong type.
    """
    hardware = {item.name for item in fields(TrainerSettings)}
    trainer = {name: value for name, value in options.items() if name in hardware}
    rest = {name: value for name, value in options.items() if name not in hardware}
    config = replace_options(RunConfig(str(data), str(out or "")), rest, source)
    return replace(config, trainer=replace_options(TrainerSettings(), trainer, source)).resolve()
