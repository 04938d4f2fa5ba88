"""Stage two of a run, for each mask budget: split, label audit, training of the decoder, and joint training."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.label_audit import audit_dataset, summarize, write_label_audit
from dasnet_lightning.data.validation_split import hold_out
from dasnet_lightning.distributed import run_on_rank_zero, world_size
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.tasks.checkpoint_info import saved_detector
from dasnet_lightning.tasks.checkpoints import read_checkpoint, without_weights
from dasnet_lightning.tasks.config import EvaluationConfig, NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.tasks.semantic import SemanticTask
from dasnet_lightning.training.config import RunConfig, default_lr
from dasnet_lightning.training.results import BudgetResult
from dasnet_lightning.training.stage import Stage, evaluate, read_errors, run_stage, scale_rate

# a validated image takes two to three times as long as a trained one, since all its detections are decoded; with this
# many trained images for each validated one, validation takes at most a fifth of the time of training
TRAINED_PER_VALIDATED = 15
DEFAULT_STEPS = 1500


def audit_budget(data: MixedSupervisionDataModule, config: RunConfig) -> Mapping[str, Mapping[str, int]]:
    """Write the split and the label audit of a budget; return the counts by class and use."""
    return run_on_rank_zero(lambda: _write_accounting(config, data))


def _write_accounting(config: RunConfig, data: MixedSupervisionDataModule) -> Mapping[str, Mapping[str, int]]:
    folder = budget_folder(config, data)
    data.write_split(folder / "split.json")
    dataset = data.opened().dataset
    # joint training trains all boxes
    held_out = () if config.joint_steps else hold_out(dataset.train.records, config.held_out or 0.0)
    uses = audit_dataset(dataset, data.mask_ids, held_out)
    write_label_audit(uses, folder / "labels.csv")
    return summarize(uses)


def budget_folder(config: RunConfig, data: MixedSupervisionDataModule) -> Path:
    """Return the folder of stage two of a budget."""
    return config.folder / f"masks-{str(data.mask_budget).replace('/', '-per-')}"


def start_task(
    config: RunConfig,
    data: MixedSupervisionDataModule,
    checkpoint: Path,
    score_threshold: float,
    joint: bool = False,
) -> SegmentationTask:
    """Build the task of a run with the recipe of `dasnet train`.

    Args:
        config: the run.
        data: the data module of its budget.
        checkpoint: the trained detector; in joint training a finished stage two.
        score_threshold: detections from this score on are shown and enter the class map.
        joint: also train the detector.
    """
    detector, detector_options = saved_detector(read_checkpoint(checkpoint)["hyper_parameters"])
    lr = default_lr(config.decoder) if config.lr is None else config.lr
    rate = scale_rate(lr / 4 if joint else lr, config.trainer)
    shared: dict[str, Any] = {
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "category_ids": data.category_ids,
        "image_range": data.image_range,
        "network": NetworkConfig(
            detector,
            without_weights(detector_options),
            config.decoder,
            dict(config.decoder_options) or None,
            soft_attention=config.soft_attention,
        ),
        "recipe": RecipeConfig(
            detector_checkpoint=None if joint else str(checkpoint),
            initial_checkpoint=str(checkpoint) if joint else None,
            joint=joint,
            box_jitter=config.box_jitter,
        ),
        "evaluation": EvaluationConfig(
            feature_cache=None if joint else config.feature_cache, feature_cache_gb=config.feature_cache_gb
        ),
        "optimizer": build_recipe(config.decoder, rate),
    }
    torch.manual_seed(config.seed)  # the same initial weights, whether stage one ran just before or long ago
    if config.task == "instance":
        return InstanceTask(**shared, inference=InstanceOptions(score_threshold=score_threshold))
    return SemanticTask(**shared, inference=SemanticOptions(score_threshold=score_threshold))


def build_recipe(decoder: str, lr: float) -> OptimizerConfig:
    """Return optimizer and schedule of stage two; the zoom decoder has its own weight decay and warm-up."""
    decay, warmup = (1e-3, 0.15) if decoder == "zoom" else (0.01, 0.1)
    return OptimizerConfig("adamw", lr, weight_decay=decay, double_bias=False, schedule="onecycle", warmup=warmup)


def train_budget(
    config: RunConfig, data: MixedSupervisionDataModule, task: SegmentationTask, masks: int
) -> BudgetResult:
    """Run stage two with the masks of one budget."""
    budget = str(data.mask_budget)
    steps = config.steps or DEFAULT_STEPS
    stage = Stage(f"stage two: {budget} masks", budget_folder(config, data), steps, validations_of(steps, data))
    checkpoint = run_stage(stage, task, data, config.trainer)
    metrics = evaluate(stage, task, data, checkpoint, config.trainer)
    drawn = 0 if data.split is None else len(data.split.image_ids)  # without images of pseudo-labels
    return BudgetResult(budget, drawn, masks, metrics, str(checkpoint), _count_errors(stage))


def _count_errors(stage: Stage) -> Mapping[str, Mapping[str, int]]:
    errors = run_on_rank_zero(lambda: read_errors(stage))
    return {source: summary["counts"] for source, summary in errors.items()}


def validations_of(steps: int, data: MixedSupervisionDataModule) -> int:
    """Return 2 validations if each takes at most a fifth of the training before it, else 1, at the end."""
    trained, validated = steps * data.batch_size * world_size(), len(data.opened().dataset.val.records)
    return 2 if trained >= 2 * TRAINED_PER_VALIDATED * validated else 1


def train_jointly(
    config: RunConfig, data: MixedSupervisionDataModule, before: BudgetResult, score_threshold: float
) -> BudgetResult:
    """Fine-tune the detector together with a trained decoder, on all boxes and the masks of the budget."""
    task = start_task(config, data, Path(before.checkpoint), score_threshold, joint=True)
    folder = budget_folder(config, data) / "joint"
    validations = validations_of(config.joint_steps, data)
    stage = Stage(f"joint training: {before.budget} masks", folder, config.joint_steps, validations)
    checkpoint = run_stage(stage, task, data, config.trainer)
    metrics = evaluate(stage, task, data, checkpoint, config.trainer)
    return replace(
        before,
        budget=f"{before.budget}, joint",
        metrics=metrics,
        checkpoint=str(checkpoint),
        errors=_count_errors(stage),
    )
