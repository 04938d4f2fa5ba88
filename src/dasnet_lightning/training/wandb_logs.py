"""What a run tells W&B between its stages: split, label audit, results, pictures and checkpoints.

All functions do nothing on ranks without an open run. They may be called again when a run continues.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.inference.segmenter import load
from dasnet_lightning.tasks.step_helpers import select_logged
from dasnet_lightning.training.config import RunConfig
from dasnet_lightning.training.mask_stage import DEFAULT_STEPS, budget_folder
from dasnet_lightning.training.results import BudgetResult
from dasnet_lightning.training.wandb_pictures import validation_pictures
from dasnet_lightning.training.wandb_run import TrackedRun, open_run

PICTURES = 8  # as many as the report shows


def log_detector(config: RunConfig, checkpoint: Path, detection: Mapping[str, float]) -> None:
    """Write the detector's box AP and score threshold into the summary, and log its checkpoint if that is wanted."""
    tracked = open_run()
    if tracked is None:
        return
    kept = select_logged({name: float(value) for name, value in detection.items() if name.startswith("val/")})
    kept["score_threshold"] = float(detection["score_threshold"])
    tracked.run.summary.update({f"detector/final/{name.removeprefix('val/')}": value for name, value in kept.items()})
    if config.detector_checkpoint is None:
        _log_checkpoint(tracked, config, checkpoint, "detector", ())


def log_labels(config: RunConfig, data: MixedSupervisionDataModule) -> None:
    """Log the split and the label audit of a budget as artifacts, named after the data set."""
    tracked = open_run()
    if tracked is None:
        return
    folder = budget_folder(config, data)
    metadata = {
        "mask_budget": str(data.mask_budget),
        "split_seed": config.split_seed,
        "mask_images": len(data.mask_ids),
    }
    aliases = [f"{_name(str(data.mask_budget))}-seed-{config.split_seed}"]
    dataset = _name(Path(config.data).resolve().stem)
    _log_artifact(tracked, f"{dataset}-split", "split", folder / "split.json", aliases, metadata)
    _log_artifact(tracked, f"{dataset}-labels", "label-audit", folder / "labels.csv", aliases, metadata)


def log_budget(
    config: RunConfig, data: MixedSupervisionDataModule, result: BudgetResult, position: int, detects: bool
) -> None:
    """Log the result of a budget by the number of its masks, validation pictures, and the checkpoint if that is wanted.

    Args:
        config: the options of the run.
        data: data module of the budget.
        result: the result.
        position: number of the result in its run.
        detects: whether the detector finds boxes.
    """
    tracked = open_run()
    if tracked is None:
        return
    checkpoint = Path(result.checkpoint)
    prefix = tracked.prefix_of(checkpoint.parent)
    counts = {"budget": result.budget, "mask_images": result.mask_images, "mask_objects": result.mask_objects}
    tracked.log_result(position, counts | select_logged(result.metrics))
    steps = config.joint_steps if checkpoint.parent.name == "joint" else config.steps or DEFAULT_STEPS
    if not tracked.has(prefix, "pictures", steps):
        instances = config.task == "instance"
        pictures = validation_pictures(load(checkpoint), data.val_set(), PICTURES, instances, detects)
        if pictures:
            tracked.log(prefix, {"pictures": pictures}, steps, media=True)
    _log_checkpoint(tracked, config, checkpoint, prefix, (_name(result.budget),))


def _log_checkpoint(
    tracked: TrackedRun, config: RunConfig, checkpoint: Path, role: str, aliases: Sequence[str]
) -> None:
    if config.trainer.log_checkpoint:
        metadata = {"role": role, "mask_budgets": list(config.mask_budgets), "split_seed": config.split_seed}
        name = f"{_name(tracked.run.id)}-{role}"
        _log_artifact(tracked, name, "model", checkpoint, ["final", *aliases], metadata)


def _log_artifact(
    tracked: TrackedRun, name: str, kind: str, file: Path, aliases: Sequence[str], metadata: Mapping[str, object]
) -> None:
    """Log a file that no longer changes; W&B keeps one version of equal content."""
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata=dict(metadata))
    artifact.add_file(str(file), policy="immutable", skip_cache=True)
    tracked.run.log_artifact(artifact, aliases=["latest", *aliases])


def _name(text: str) -> str:
    """Return text in the letters that W&B allows in names and aliases."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text.replace("/", "-per-"))
