"""A whole run: stage one on all boxes, stage two for each mask budget, evaluation, report; each part done once.

The folder of a run holds `run.json` (its settings), `detector/`, one folder for each budget, `results.json` and
`report.html`. Starting a run again continues where it stopped, and refuses settings that differ.
"""

from typing import Any

import lightning as L

from dasnet_lightning.data.datamodule import MixedSupervisionDataModule, Supervision
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.distributed import run_on_rank_zero, world_size
from dasnet_lightning.feature_cache.cache import open_feature_cache
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.training.config import RunConfig, RunResult, claim_folder
from dasnet_lightning.training.detector_stage import resolve_detector, train_detector
from dasnet_lightning.training.failures import explained_failures
from dasnet_lightning.training.launch import processes
from dasnet_lightning.training.mask_stage import audit_budget, start_task, train_budget, train_jointly


def execute(config: RunConfig) -> RunResult:
    """Do what of the run is not done yet; returns its result, which `results.json` holds as well.

    Over several devices it returns in every process.
    """
    L.seed_everything(config.seed, verbose=False)
    open_feature_cache(config.feature_cache, config.feature_cache_gb)
    # what cannot be used is told before any process starts: once, and soon
    dataset = open_dataset(config.data, allow_missing=config.allow_missing, fix=config.fix)
    detector, options, image_size = resolve_detector(config, len(dataset.train.class_names))
    with processes(config.trainer), explained_failures():
        run_on_rank_zero(lambda: claim_folder(config))
        result = run_stages(config, dataset, detector, options, image_size)
        run_on_rank_zero(lambda: write_json(config.folder / "results.json", result.as_dict()))
    return result


def run_stages(
    config: RunConfig, dataset: DataSet, detector: str, options: dict[str, Any], image_size: tuple[int, int]
) -> RunResult:
    """Both stages, for each budget the second, and joint training after it. All processes run it."""
    boxes = build_data(config, dataset, "boxes", image_size)
    checkpoint, detection = train_detector(config, boxes, detector, options)
    budgets, accounting = [], {}
    for budget in config.mask_budgets:
        masks = build_data(config, dataset, "masks", image_size, budget)
        accounting[budget] = audit_budget(masks, config)
        task = start_task(config, masks, checkpoint, detection["score_threshold"])
        stage_two = train_budget(config, masks, task, accounting[budget]["all"]["trained"])
        budgets.append(stage_two)
        if config.joint_steps:
            both = build_data(config, dataset, "mixed", image_size, budget)
            budgets.append(train_jointly(config, both, stage_two, detection["score_threshold"]))
    return RunResult(config, detector, tuple(boxes.class_names), detection, tuple(budgets), accounting, boxes.val_set())


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
        samples_per_epoch=None if boxes else 100 * batch_size * world_size(),
        allow_missing=config.allow_missing,
        fix=config.fix,
    )
    data.use(dataset)
    return data
