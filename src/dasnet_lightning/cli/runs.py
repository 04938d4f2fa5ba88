"""A whole run: stage one on all boxes, stage two for each mask budget, evaluation, report; each part done once.

The folder of a run holds `run.json` (its settings), `detector/`, one folder for each budget, `results.json` and
`report.html`. Starting a run again continues where it stopped, and refuses settings that differ.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from dasnet_lightning.cli.console import progress, say
from dasnet_lightning.cli.run_records import BudgetResult, RunConfig, RunResult, claim_folder
from dasnet_lightning.cli.stages import Stage, Task, TrainerSettings, build_evaluator, run_stage
from dasnet_lightning.data.accounting import account, summarise, write_accounting
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule, Supervision
from dasnet_lightning.data.formats import DataSet, open_dataset
from dasnet_lightning.detectors import DETECTORS, build_detector, learns_boxes
from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.files import write_json
from dasnet_lightning.metrics.threshold import HIGHEST, best_score_threshold
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.tasks.checkpoints import load_checkpoint, read_checkpoint, without_weights
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.tasks.semantic import SemanticTask
from dasnet_lightning.types import Detections, Target

CALIBRATION_IMAGES = 200


def execute(config: RunConfig) -> RunResult:
    """Do what of the run is not done yet; returns its result, which `results.json` holds as well."""
    claim_folder(config)
    L.seed_everything(config.seed, verbose=False)
    dataset = open_dataset(config.data, allow_missing=config.allow_missing, fix=config.fix)
    detector, options, image_size = resolve_detector(config, len(dataset.train.class_names))
    boxes = build_data(config, dataset, "boxes", image_size)
    checkpoint, detection = train_detector(config, boxes, detector, options)
    budgets, accounting = [], {}
    for budget in config.mask_budgets:
        masks = build_data(config, dataset, "masks", image_size, budget)
        accounting[budget] = account_labels(masks, config)
        task = start_task(config, masks, checkpoint, detection["score_threshold"])
        stage_two = train_budget(config, masks, task, accounting[budget]["all"]["trained"])
        budgets.append(stage_two)
        if config.joint_steps:
            both = build_data(config, dataset, "mixed", image_size, budget)
            budgets.append(train_jointly(config, both, stage_two, detection["score_threshold"]))
    result = RunResult(
        config, detector, tuple(boxes.class_names), detection, tuple(budgets), accounting, boxes.val_set()
    )
    write_json(config.folder / "results.json", result.figures())
    return result


def resolve_detector(config: RunConfig, num_classes: int) -> tuple[str, dict[str, Any], tuple[int, int]]:
    """The detector's name, its options and its input size: from its checkpoint where one is given."""
    options = dict(config.detector_options)
    options |= {"image_size": config.image_size} if config.image_size else {}
    if config.detector_checkpoint is None:
        name = config.detector
        DETECTORS.get(name)
        options |= {"backbone_weights": config.backbone_weights} if config.backbone_weights else {}
    else:
        saved = read_checkpoint(config.detector_checkpoint)["hyper_parameters"]
        name, options = saved["detector"], dict(saved["detector_options"] or {}) | options
        if saved["num_classes"] != num_classes:
            raise CheckpointError(
                f"{config.detector_checkpoint}: detects {saved['num_classes'] - 1} classes, the data set has {num_classes - 1}"
            )
    return name, options, build_detector(name, num_classes, **without_weights(options)).image_size


def build_data(
    config: RunConfig,
    dataset: DataSet,
    supervision: Supervision,
    image_size: tuple[int, int],
    budget: str = "all",
) -> MixedSupervisionDataModule:
    """The data of a stage: all boxes, the masks inside a budget, or both."""
    boxes = supervision == "boxes"
    batch_size = config.detector_batch_size if boxes else config.batch_size
    data = MixedSupervisionDataModule(
        config.data,
        image_size=image_size,
        batch_size=batch_size,
        num_workers=config.num_workers,
        supervision=supervision,
        mask_budget=budget,
        split_seed=config.split_seed,
        seed=config.seed,
        augmentation=config.detector_augmentation if boxes else "segment",
        # an epoch of a few masks would end before it began
        samples_per_epoch=None if boxes else 100 * batch_size,
        allow_missing=config.allow_missing,
        fix=config.fix,
    )
    data.use(dataset)
    return data


def train_detector(
    config: RunConfig, data: MixedSupervisionDataModule, detector: str, options: dict[str, Any]
) -> tuple[Path, Mapping[str, float]]:
    """Stage one, unless a checkpoint is given; returns the checkpoint and the detector's box AP."""
    folder = config.folder / "detector"
    steps = config.detector_steps or max(600, 40 * len(data.train_set()) // config.detector_batch_size)
    given = config.detector_checkpoint
    task = DetectionTask(
        data.num_classes,
        data.class_names,
        data.category_ids,
        detector,
        options if given is None else without_weights(options),
        OptimizerConfig("adamw", config.detector_lr, weight_decay=0.01, double_bias=False, schedule="onecycle"),
    )
    stage = Stage("stage one: boxes", folder, steps)
    if not learns_boxes(task.detector):
        return skip_detector(config, data, task, stage)
    checkpoint = Path(given) if given else run_stage(stage, task, data, config.trainer)
    metrics = evaluate(stage, task, data, checkpoint, config.trainer)
    return checkpoint, {**metrics, "score_threshold": choose_threshold(stage, task, data, checkpoint, config)}


def skip_detector(
    config: RunConfig, data: MixedSupervisionDataModule, task: DetectionTask, stage: Stage
) -> tuple[Path, Mapping[str, float]]:
    """Stage one of a detector that boxes teach nothing: its checkpoint without a step, and its box AP as it is."""
    say(f"{stage.name}: detector '{config.detector}' has nothing to learn from them, stage two starts directly")
    task.optimizer_config = replace(task.optimizer_config, schedule="constant")  # no other one is without a length
    checkpoint = run_stage(replace(stage, steps=0, validations=0), task, data, config.trainer)
    metrics = evaluate(stage, task, data, checkpoint, config.trainer)
    return checkpoint, {**metrics, "score_threshold": config.score_threshold or HIGHEST}


def choose_threshold(
    stage: Stage, task: DetectionTask, data: MixedSupervisionDataModule, checkpoint: Path, config: RunConfig
) -> float:
    """The score from which on detections are believed: given, or the best F1 on training images, found once."""
    path = stage.folder / "threshold.json"
    if config.score_threshold:
        return config.score_threshold
    if not path.is_file():
        say(f"{stage.name}: choosing the score threshold on training images")
        load_checkpoint(task, checkpoint)
        device = build_evaluator(config.trainer).strategy.root_device
        task.eval().to(device)
        detections: list[Detections] = []
        targets: list[Target] = []
        with torch.inference_mode():
            for batch in progress(data.calibration_dataloader(CALIBRATION_IMAGES), stage.name):
                detections += task.detector.detect(task.detector.features(batch.images.to(device)))
                targets += batch.targets
        write_json(path, {"score_threshold": best_score_threshold(detections, targets), "images": len(targets)})
    return float(json.loads(path.read_text())["score_threshold"])


def account_labels(data: MixedSupervisionDataModule, config: RunConfig) -> Mapping[str, Mapping[str, int]]:
    """Write the split of a budget and the use of every label beside it; returns the counts by class."""
    folder = budget_folder(config, data)
    data.write_split(folder / "split.json")
    dataset = data.opened().dataset
    uses = (*account(dataset.train, data.mask_ids, "train"), *account(dataset.val, None, "val"))
    write_accounting(uses, folder / "labels.csv")
    return summarise(uses)


def budget_folder(config: RunConfig, data: MixedSupervisionDataModule) -> Path:
    """Where the second stage of a budget lives."""
    return config.folder / f"masks-{str(data.mask_budget).replace('/', '-per-')}"


def start_task(
    config: RunConfig,
    data: MixedSupervisionDataModule,
    checkpoint: Path,
    score_threshold: float,
    joint: bool = False,
) -> SegmentationTask:
    """The task of the run with the recipe of `dasnet train`: from a detector, or jointly from a finished stage two."""
    saved = read_checkpoint(checkpoint)["hyper_parameters"]
    rate = config.lr / 4 if joint else config.lr
    shared: dict[str, Any] = {
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "category_ids": data.category_ids,
        "detector": saved["detector"],
        "detector_options": without_weights(saved["detector_options"]),
        "initial_checkpoint" if joint else "detector_checkpoint": str(checkpoint),
        "decoder": config.decoder,
        "soft_attention": config.soft_attention,
        "joint": joint,
        "optimizer": OptimizerConfig("adamw", rate, weight_decay=0.01, double_bias=False, schedule="onecycle"),
    }
    if config.task == "instance":
        return InstanceTask(**shared, inference=InstanceOptions(score_threshold=score_threshold))
    return SemanticTask(**shared, inference=SemanticOptions(score_threshold=score_threshold))


def train_budget(
    config: RunConfig, data: MixedSupervisionDataModule, task: SegmentationTask, masks: int
) -> BudgetResult:
    """Stage two with the masks of one budget."""
    budget = str(data.mask_budget)
    stage = Stage(f"stage two: {budget} masks", budget_folder(config, data), config.steps or 1500, validations=2)
    checkpoint = run_stage(stage, task, data, config.trainer)
    metrics = evaluate(stage, task, data, checkpoint, config.trainer)
    return BudgetResult(budget, len(data.mask_ids), masks, metrics, str(checkpoint))


def train_jointly(
    config: RunConfig, data: MixedSupervisionDataModule, before: BudgetResult, score_threshold: float
) -> BudgetResult:
    """Fine-tune the detector together with a trained decoder, on all boxes and the masks of the budget."""
    task = start_task(config, data, Path(before.checkpoint), score_threshold, joint=True)
    folder = budget_folder(config, data) / "joint"
    stage = Stage(f"joint training: {before.budget} masks", folder, config.joint_steps, validations=2)
    checkpoint = run_stage(stage, task, data, config.trainer)
    metrics = evaluate(stage, task, data, checkpoint, config.trainer)
    return replace(before, budget=f"{before.budget}, joint", metrics=metrics, checkpoint=str(checkpoint))


def evaluate(
    stage: Stage,
    task: Task,
    data: MixedSupervisionDataModule,
    checkpoint: Path,
    settings: TrainerSettings,
) -> Mapping[str, float]:
    """The validation figures of a checkpoint: from the end of its training, or measured once; then read from its folder."""
    if not stage.metrics.is_file():
        say(f"{stage.name}: evaluating {checkpoint}")
        load_checkpoint(task, checkpoint)
        build_evaluator(settings).validate(task, data, verbose=False)
        write_json(stage.metrics, task.figures)
    return json.loads(stage.metrics.read_text())
