"""The two-stage recipe: stage one on all boxes, stage two for each mask budget, evaluation and report.

The run folder holds `run.json` (its settings and its data), `dataset.html`, `detector/`, one folder for each budget,
`results.json` and `report.html`.
Starting a run again continues where it stopped, and refuses settings that differ.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

import lightning as L

from dasnet_lightning import console
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule, Supervision
from dasnet_lightning.data.fingerprint import fingerprint
from dasnet_lightning.data.sources.model_masks import ModelMasks
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.distributed import is_rank_zero, run_on_rank_zero
from dasnet_lightning.feature_cache.cache import open_feature_cache
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.training.config import (
    STAGE_TWO_AUGMENTATION,
    RunConfig,
    check_settings,
)
from dasnet_lightning.training.data_check import announce_data, check_labels, check_masks, unchecked
from dasnet_lightning.training.data_record import check_same_data, describe_accepted, record_data
from dasnet_lightning.training.dataset_page import RunPage
from dasnet_lightning.training.detector_stage import ResolvedDetector, resolve_detector, train_detector
from dasnet_lightning.training.failures import explained_failures
from dasnet_lightning.training.hardware import quiet_lightning, set_thread_counts
from dasnet_lightning.training.launch import processes
from dasnet_lightning.training.loggers import check_logger
from dasnet_lightning.training.mask_stage import audit_budget, start_task, train_budget, train_jointly
from dasnet_lightning.training.options import TrainOptions, build_config
from dasnet_lightning.training.report import finish
from dasnet_lightning.training.results import GIVEN_BOXES, BudgetResult, RunResult
from dasnet_lightning.training.wandb_logs import log_budget, log_detector, log_labels
from dasnet_lightning.training.wandb_run import wandb_run

Outcome = TypeVar("Outcome")

EPOCH_IMAGES = 800  # images in an epoch of stage two: a few masks are drawn several times, whatever the batch size


def train(data: str | Path, out: str | Path | None = None, **options: Unpack[TrainOptions]) -> RunResult:
    """Train both stages, evaluate, and write a report; the same as `dasnet train`.

    A run that was interrupted continues when it is started again with the same options.

    Args:
        data: the data set: a folder, a label file, or a YAML list of several.
        out: run folder; None for runs/DATA-BUDGETS.
        options: fields of `RunConfig` and `TrainerSettings`, such as `mask_budgets=("5/class", "all")`, `detector`,
            `weights`, `image_size`, `detector_steps`, `steps`, `batch_size`, `lr`, `seed`, `devices`, `precision` and `logger`.

    Returns:
        The metrics and the checkpoint of each budget, and the detector's box AP.

    Raises:
        CheckpointError: the detector's weights cannot be downloaded, cannot be read, or do not fit.
        ConfigError: an option is unknown or does not fit, or the folder holds a run with other settings.
        DataError: the data set cannot be used.
        Stopped: a signal asked to stop; the run can be continued.

    Example:
        >>> result = dasnet_lightning.train("data/pets", mask_budgets=("5/class", "all"), detector="ssd_tiny")
        >>> result.budgets[0].metrics["val/miou_detected_boxes"]
    """
    config = build_config(data, out, options, "train")
    return run_and_report(config, "Masks from boxes and a few masks", _describe_call(data, out, options))


def _describe_call(data: str | Path, out: str | Path | None, options: Mapping[str, Any]) -> list[str]:
    arguments = [repr(str(data)), *([] if out is None else [f"out={str(out)!r}"])]
    arguments += [f"{name}={value!r}" for name, value in options.items()]
    return [f"dasnet_lightning.train({', '.join(arguments)})"]


def run_and_report(config: RunConfig, title: str, command: Sequence[str]) -> RunResult:
    """Run what is not done yet, print the tables, and write the report page.

    Args:
        config: a resolved configuration.
        title: of the report.
        command: what started the run, shown in the report.
    """
    quiet_lightning()
    set_thread_counts(config.num_workers or 0)
    result = execute(config)
    if is_rank_zero():
        finish(config, result, title, command)
    return result


def execute(config: RunConfig) -> RunResult:
    """Run what is not done yet and return the result, which `results.json` holds too.

    With several devices, every process returns it.
    """

    def stages(data: DataSet, detector: ResolvedDetector, notes: Sequence[str]) -> RunResult:
        result = replace(run_stages(config, data, detector), notes=tuple(notes))
        run_on_rank_zero(lambda: write_json(config.folder / "results.json", result.as_dict()))
        return result

    return run_on_data(config, stages, [(budget, config.split_seed) for budget in config.mask_budgets])


def run_on_data(
    config: RunConfig,
    stages: Callable[[DataSet, ResolvedDetector, Sequence[str]], Outcome],
    draws: Sequence[tuple[str, int]],
) -> Outcome:
    """Open and check the data set, start the processes, and call `stages` in each of them.

    Args:
        config: the options of the run; its folder is claimed.
        stages: takes the checked data set, the detector, and what a reader of the metrics must know.
        draws: the mask budgets and their split seeds, whose masks are checked.
    """
    L.seed_everything(config.seed, verbose=False)
    open_feature_cache(config.feature_cache, config.feature_cache_gb)
    check_logger(config.trainer)
    # errors of the data set and of the detector's options come once, before any process starts
    model_masks: ModelMasks = "train" if config.use_model_masks else "ignore"
    dataset = open_dataset(config.data, config.allow_missing, config.fix, config.crowd, model_masks)
    check_labels(dataset, draws)
    detector = resolve_detector(config, dataset.train.class_names)
    with processes(config.trainer), explained_failures():
        run_on_rank_zero(lambda: check_settings(config))
        prints = fingerprint(dataset) if is_rank_zero() else {}
        accepted = run_on_rank_zero(lambda: check_same_data(config, prints))
        page = RunPage(config, dataset, detector.image_size, draws[-1]) if is_rank_zero() else None
        if page is not None:
            page.write(unchecked(dataset))
        data = check_masks(dataset, draws)
        if page is not None:
            page.write(data)
            announce_data(data, page.problems)
        run_on_rank_zero(lambda: record_data(config, prints, accepted))
        if detector.weights_note:
            console.info(detector.weights_note)
        with wandb_run(config, data.dataset):  # bad data has been refused before
            return stages(data.dataset, detector, describe_accepted(accepted))


def run_stages(config: RunConfig, dataset: DataSet, detector: ResolvedDetector) -> RunResult:
    """Run both stages, the second for each budget, and joint training after it. Every process runs this.

    Args:
        config: the options of the run.
        dataset: the opened data set.
        detector: the detector.
    """
    image_size = detector.image_size
    config = hold_out_if_needed(config, detector)
    boxes = build_data(config, dataset, "boxes", image_size)
    checkpoint, detection = train_detector(config, boxes, detector)
    log_detector(config, checkpoint, detection)
    budgets: list[BudgetResult] = []
    accounting = {}
    detects = detector.name != GIVEN_BOXES
    for budget in config.mask_budgets:
        masks = build_data(config, dataset, "masks", image_size, budget)
        accounting[budget] = audit_budget(masks, config)
        log_labels(config, masks)
        task = start_task(config, masks, checkpoint, detection["score_threshold"])
        stage_two = train_budget(config, masks, task, accounting[budget]["all"]["trained"])
        log_budget(config, masks, stage_two, len(budgets), detects)
        budgets.append(stage_two)
        if config.joint_steps:
            mixed = build_data(config, dataset, "mixed", image_size, budget)
            budgets.append(train_jointly(config, mixed, stage_two, detection["score_threshold"]))
            log_budget(config, mixed, budgets[-1], len(budgets) - 1, detects)
    return RunResult(
        config, detector.name, tuple(boxes.class_names), detection, tuple(budgets), accounting, boxes.val_set()
    )


def hold_out_if_needed(config: RunConfig, detector: ResolvedDetector) -> RunConfig:
    """Return the options without held-out images if nothing would be chosen on them."""
    chosen = config.score_threshold or config.detector_checkpoint or not detector.learns_boxes
    return replace(config, held_out=0.0) if chosen else config


def build_data(
    config: RunConfig,
    dataset: DataSet,
    supervision: Supervision,
    image_size: tuple[int, int],
    budget: str = "all",
) -> MixedSupervisionDataModule:
    """Return the data module of a stage: all boxes, the masks of a budget, or both."""
    boxes = supervision == "boxes"
    data = MixedSupervisionDataModule(
        config.data,
        image_size=image_size,
        batch_size=config.detector_batch_size if boxes else config.batch_size,
        num_workers=config.num_workers or 0,
        supervision=supervision,
        mask_budget=budget,
        split_seed=config.split_seed,
        seed=config.seed,
        augmentation=config.detector_augmentation if boxes else STAGE_TWO_AUGMENTATION,
        samples_per_epoch=None if boxes else EPOCH_IMAGES,
        allow_missing=config.allow_missing,
        fix=config.fix,
        crowd=config.crowd,
        held_out=config.held_out or 0.0,
    )
    data.use(dataset)
    return data
