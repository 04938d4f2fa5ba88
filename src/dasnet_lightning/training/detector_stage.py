"""Stage one of a run: trains the detector on boxes, or takes a trained one, and chooses its score threshold."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dasnet_lightning import console
from dasnet_lightning.console import progress
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.detectors import build_detector
from dasnet_lightning.distributed import evaluate_gathered, is_rank_zero, run_on_rank_zero, world_size
from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.metrics.threshold import HIGHEST, best_score_threshold
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.tasks.checkpoint_info import saved_detector
from dasnet_lightning.tasks.checkpoints import load_checkpoint, read_checkpoint, without_weights
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.training.config import RunConfig, default_detector_lr
from dasnet_lightning.training.stage import Stage, build_evaluator, evaluate, read_curves, run_stage, scale_rate
from dasnet_lightning.types import Detections, Target, map_tensors

CALIBRATION_IMAGES = 200
WEAK_AP50 = 0.3
RISING_AP50 = 0.03  # between the last two validations


class ResolvedDetector(NamedTuple):
    """The detector of a run.

    Attributes:
        name: its registered name.
        options: options of its builder.
        image_size: (H, W) of the network input.
        weights_note: with which weights it starts; empty if its training is complete.
        starts_trained: whether its class predictors are trained.
        learns_boxes: whether stage one trains it.
    """

    name: str
    options: dict[str, Any]
    image_size: tuple[int, int]
    weights_note: str = ""
    starts_trained: bool = False
    learns_boxes: bool = True


def resolve_detector(config: RunConfig, class_names: Sequence[str]) -> ResolvedDetector:
    """Return the detector of a run, from its checkpoint if one is given; load its initial weights unless it is trained.

    Args:
        config: the options of the run.
        class_names: the classes of the data set, background first.

    Raises:
        CheckpointError: the weights cannot be downloaded, cannot be read, or do not fit.
        ConfigError: the detector does not have such weights or options.
    """
    options = dict(config.detector_options)
    options |= {"image_size": config.image_size} if config.image_size else {}
    if config.detector_checkpoint is None:
        name, options = config.detector, options | choose_weights(config)
        if not detector_stage(config).final.is_file():
            detector = build_detector(name, len(class_names), class_names=class_names, **options)
            note, trained = detector.weights_note, detector.starts_trained
            return ResolvedDetector(name, options, detector.image_size, note, trained, detector.learns_boxes)
    else:
        saved = read_checkpoint(config.detector_checkpoint)["hyper_parameters"]
        name, saved_options = saved_detector(saved)
        options = saved_options | options
        if saved["num_classes"] != len(class_names):
            raise CheckpointError(
                f"{config.detector_checkpoint}: detects {saved['num_classes'] - 1} classes, "
                f"the data set has {len(class_names) - 1}"
            )
        if config.weights != "auto":
            raise ConfigError(
                f"weights is '{config.weights}', but detector_checkpoint holds all weights; give one of them"
            )
    detector = build_detector(name, len(class_names), **without_weights(options))
    return ResolvedDetector(name, options, detector.image_size, learns_boxes=detector.learns_boxes)


def choose_weights(config: RunConfig) -> dict[str, str]:
    """Return the builder's options for the initial weights.

    Raises:
        ConfigError: both `weights` and `backbone_weights` are given.
    """
    expert = config.backbone_weights or config.detector_options.get("backbone_weights")
    if not expert:
        return {"weights": config.detector_options.get("weights", config.weights)}
    if config.weights != "auto":
        raise ConfigError(f"weights is '{config.weights}' and backbone_weights is '{expert}', expected one of them")
    return {"backbone_weights": expert}


def detector_stage(config: RunConfig, steps: int = 0) -> Stage:
    """Return stage one of a run."""
    return Stage("stage one: boxes", config.folder / "detector", steps, ema=config.detector_ema or 0.0)


def train_detector(
    config: RunConfig, data: MixedSupervisionDataModule, detector: ResolvedDetector
) -> tuple[Path, Mapping[str, float]]:
    """Run stage one, unless a checkpoint is given; return the checkpoint and the detector's box AP."""
    steps = config.detector_steps or default_steps(config, len(data.train_set()), detector.starts_trained)
    stage, given = detector_stage(config, steps), config.detector_checkpoint
    complete = given is not None or run_on_rank_zero(stage.final.is_file)
    default_rate = default_detector_lr(config.detector, detector.starts_trained)
    rate = scale_rate(config.detector_lr or default_rate, config.trainer)
    torch.manual_seed(config.seed)  # the initial weights
    task = DetectionTask(
        data.num_classes,
        data.class_names,
        data.category_ids,
        detector.name,
        without_weights(detector.options) if complete else detector.options,
        OptimizerConfig("adamw", rate, weight_decay=0.01, double_bias=False, schedule="onecycle"),
        image_range=data.image_range,
    )
    if not task.detector.learns_boxes:
        return skip_detector(config, data, task, stage)
    checkpoint = Path(given) if given else run_stage(stage, task, data, config.trainer)
    metrics = evaluate(stage, task, data, checkpoint, config.trainer)
    if is_rank_zero():
        for warning in detector_warnings(stage, metrics):
            console.error(f"warning: {warning}")
    return checkpoint, {**metrics, "score_threshold": choose_threshold(stage, task, data, checkpoint, config)}


def default_steps(config: RunConfig, num_images: int, starts_trained: bool) -> int:
    """Return the optimizer steps of stage one by the number of images that it sees.

    40 epochs, at least 9,600 images; 4 epochs, at least 1,600 images, if the class predictors are trained.
    """
    images = max(1600, 4 * num_images) if starts_trained else max(9600, 40 * num_images)
    return images // (config.detector_batch_size * world_size())


def detector_warnings(stage: Stage, metrics: Mapping[str, float]) -> list[str]:
    """Return what deserves a warning before stage two: a weak detector, or one that was still improving."""
    final = metrics.get("val/box_ap50", math.nan)
    curve = [value for _, value in read_curves(stage.folder).get("val/box_ap50", [])]
    warnings = []
    if final < WEAK_AP50:
        warnings.append(f"{stage.name}: the box AP50 is {final:.2f}, and masks with detected boxes cannot be better")
    if len(curve) > 1 and curve[-1] - curve[-2] > RISING_AP50:
        warnings.append(
            f"{stage.name}: the box AP50 still rose from {curve[-2]:.2f} to {curve[-1]:.2f} in the last "
            f"{stage.interval} steps; more --detector-steps would improve it"
        )
    return warnings


def skip_detector(
    config: RunConfig, data: MixedSupervisionDataModule, task: DetectionTask, stage: Stage
) -> tuple[Path, Mapping[str, float]]:
    """Write the checkpoint of a detector that does not learn from boxes, and measure its box AP."""
    console.out(f"{stage.name}: detector '{config.detector}' does not learn from boxes, stage two starts directly")
    task.optimizer_config = replace(task.optimizer_config, schedule="constant")  # the only schedule without a length
    checkpoint = run_stage(replace(stage, steps=0, validations=0), task, data, config.trainer)
    metrics = evaluate(stage, task, data, checkpoint, config.trainer)
    return checkpoint, {**metrics, "score_threshold": config.score_threshold or HIGHEST}


def choose_threshold(
    stage: Stage, task: DetectionTask, data: MixedSupervisionDataModule, checkpoint: Path, config: RunConfig
) -> float:
    """Return the score threshold of the evaluation: given, or the best for class maps on held-out or training images."""
    path = stage.folder / "threshold.json"
    if config.score_threshold:
        return config.score_threshold
    if not run_on_rank_zero(path.is_file):
        images = f"{len(data.held_out_ids)} held-out" if data.held_out_ids else "training"
        console.out(f"{stage.name}: choosing the score threshold on {images} images")
        load_checkpoint(task, checkpoint)
        device = build_evaluator(config.trainer).strategy.root_device
        task.eval().to(device)
        found: dict[str, tuple[Detections, Target]] = {}
        loader = data.calibration_dataloader(CALIBRATION_IMAGES)
        with torch.inference_mode():
            for batch in progress(loader, stage.name) if is_rank_zero() else loader:
                detections = task.detector.detect(task.detector.features(batch.images.to(device)))
                kept = [map_tensors(item, lambda tensor: tensor.cpu()) for item in detections]
                found |= dict(zip(batch.image_ids, zip(kept, batch.targets, strict=True), strict=True))
        evaluate_gathered(found, partial(_write_threshold, path, task.detector.image_size, data.num_classes))
    return float(run_on_rank_zero(lambda: json.loads(path.read_text()))["score_threshold"])


def _write_threshold(
    path: Path, size: tuple[int, int], num_classes: int, found: Mapping[str, tuple[Detections, Target]]
) -> None:
    detections, targets = zip(*found.values(), strict=True)
    threshold = best_score_threshold(detections, targets, size, num_classes)
    write_json(path, {"score_threshold": threshold, "images": len(targets)})
