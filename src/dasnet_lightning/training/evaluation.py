"""Evaluation of a checkpoint on the test split of a data set, or on another data set."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dasnet_lightning import __version__, console
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.fingerprint import find_trained
from dasnet_lightning.data.label_audit import LabelUse, audit_labels, summarize, write_label_audit
from dasnet_lightning.data.mask_check import find_mask_faults, mark_invalid
from dasnet_lightning.data.obstacles import validation_obstacle
from dasnet_lightning.data.pixels import ImageRange
from dasnet_lightning.data.records import Source
from dasnet_lightning.data.sources.checks import Fix, RecordsError, parse_object
from dasnet_lightning.data.sources.class_mapping import map_classes
from dasnet_lightning.data.sources.formats import NamedSplits
from dasnet_lightning.data.sources.open import Crowd, DataSet, open_named_splits, split_by_hash
from dasnet_lightning.errors import ConfigError, DataError
from dasnet_lightning.metrics.floors import FLOORS
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.tasks.checkpoint_info import read_info
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.tasks.semantic import SemanticTask
from dasnet_lightning.training.config import TrainerSettings
from dasnet_lightning.training.failures import explained_failures
from dasnet_lightning.training.hardware import default_workers, quiet_lightning, set_thread_counts
from dasnet_lightning.training.stage import build_evaluator

SplitName = Literal["test", "val", "all"]
Options = tuple[bool, Fix, Crowd]  # allow_missing, fix and crowd of `open_dataset`
TASKS: Mapping[str, type[DetectionTask | SegmentationTask]] = {
    "detection": DetectionTask,
    "semantic": SemanticTask,
    "instance": InstanceTask,
}
SPLIT_TITLES = {"test": "test", "val": "validation", "all": "evaluated"}
LEVELS = 4  # folders above a checkpoint that may be its run


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        data: the data set.
        checkpoint: the checkpoint.
        task: "detection", "semantic" or "instance".
        split: "test", "val" or "all".
        images: number of images.
        class_names: classes of the checkpoint, background first.
        metrics: values in 0..1 by name, such as `box_ap50`, `miou_detected_boxes` or `coco_ap_ground_truth_boxes/cat`.
            AP is -1 and IoU nan if there was nothing to measure.
        floors: the mask metrics of filled rectangles and filled ellipses in the same boxes, by floor.
        labels: counts of the labels by class and use.
        notes: sentences that a reader of the metrics must know.
        obstacle: why the masks cannot be measured; empty if they can.
        rows: one for each label.
    """

    data: str
    checkpoint: str
    task: str
    split: str
    images: int
    class_names: tuple[str, ...]
    metrics: Mapping[str, float]
    floors: Mapping[str, Mapping[str, float]]
    labels: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]
    obstacle: str
    rows: tuple[LabelUse, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the rows, as `results.json` holds it."""
        values = {name: value for name, value in vars(self).items() if name != "rows"}
        return {"version": __version__, **values}


def evaluate(
    data: str | Path,
    checkpoint: str | Path,
    out: str | Path | None = None,
    *,
    split: SplitName | None = None,
    allow_missing: bool = False,
    fix: Fix = "error",
    crowd: Crowd = "ignore",
    batch_size: int = 8,
    num_workers: int | None = None,
    accelerator: str = "auto",
    precision: str | None = None,
) -> Evaluation:
    """Measure a checkpoint on a split of a data set; the same as `dasnet test DATA --checkpoint FILE`.

    Classes are matched by their names. Box AP, mIoU and mask AP are those of `dasnet train`, with ground-truth and with
    detected boxes.

    Args:
        data: the data set, in any format that `dasnet train` reads.
        checkpoint: of either stage; a detector alone gets its box AP.
        out: folder for results.json and labels.csv; None writes no file.
        split: None for the test split, else the validation split. If the files name neither, it is all images, or the
            validation images of the run if the checkpoint was trained on this data set.
        allow_missing: leave out images whose file is missing.
        fix: "drop" leaves out labels that cannot be used.
        crowd: "ignore" or "object", see `open_dataset`.
        batch_size: images per batch.
        num_workers: processes that load images; None for half of the processors.
        accelerator: "auto", "cpu", "cuda", ...
        precision: of the network; None for the fastest that the hardware supports, as in training.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: the data set has no such split.
        DataError: the data set cannot be used, or has none of the checkpoint's classes.

    Example:
        >>> result = dasnet_lightning.evaluate("data/pets", "runs/pets-all/masks-all/final.ckpt")
        >>> result.metrics["miou_detected_boxes"], result.floors["ellipse"]["miou_detected_boxes"]
    """
    workers = default_workers() if num_workers is None else num_workers
    settings = TrainerSettings(accelerator=accelerator, precision=precision).resolve()
    result = _evaluate(
        Path(data).expanduser(), Path(checkpoint), split, (allow_missing, fix, crowd), settings, batch_size, workers
    )
    if out is not None:
        _write(result, Path(out))
    return result


def _evaluate(
    data: Path,
    checkpoint: Path,
    split: SplitName | None,
    options: Options,
    settings: TrainerSettings,
    batch_size: int,
    num_workers: int,
) -> Evaluation:
    quiet_lightning()
    set_thread_counts(num_workers)
    task, run = load_task(checkpoint), _read_run(checkpoint)
    name, source, notes = _choose_split(data, split, run, options)
    if trained := find_trained(run.get("fingerprint", {}), source):
        notes.append(f"{len(trained)} of the {len(source.records)} images were training images of this checkpoint")
    source, mismatch = map_classes(source, task.class_names)
    notes += [mismatch] if mismatch else []
    with console.counter("checking masks") as move:
        source = mark_invalid(source, find_mask_faults(source, source.records, move))
    if isinstance(task, SegmentationTask):
        task.measure_boxes = True
    with explained_failures():
        build_evaluator(settings).test(task, _build_data(data, source, task, batch_size, num_workers), verbose=False)
    rows = audit_labels(source, None, "val")
    values = {key.removeprefix("val/"): value for key, value in task.metrics.items()}
    return Evaluation(
        data=str(data),
        checkpoint=str(checkpoint),
        task=next(key for key, kind in TASKS.items() if type(task) is kind),
        split=name,
        images=len(source.records),
        class_names=tuple(task.class_names),
        metrics={name: value for name, value in values.items() if not name.startswith(FLOORS)},
        floors=_select_floors(values),
        labels=summarize(rows),
        notes=tuple(notes),
        obstacle=validation_obstacle(source, SPLIT_TITLES[name]),
        rows=rows,
    )


def _select_floors(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the metrics of the floors by shape; empty for a detector, which has no masks."""
    by_shape = {
        shape: {name.removeprefix(f"{shape}_"): value for name, value in values.items() if name.startswith(shape)}
        for shape in FLOORS
    }
    return {shape: metrics for shape, metrics in by_shape.items() if metrics}


def load_task(checkpoint: str | Path) -> DetectionTask | SegmentationTask:
    """Build the task of a checkpoint of either stage. Raises CheckpointError or, without class names, ConfigError."""
    kind = read_info(read_checkpoint(checkpoint), checkpoint).task
    task = TASKS[kind].load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    if not task.class_names:
        raise ConfigError(
            f"{checkpoint}: names no classes, so its labels cannot be matched; use `dasnet test --config`"
        )
    return task


def _choose_split(
    path: Path, split: str | None, run: Mapping[str, Any], options: Options
) -> tuple[str, Source, list[str]]:
    """Return the name of the split, its images, and notes about the choice."""
    splits = open_named_splits(path, *options)
    if split is None:
        named = splits.val is not None or (bool(run) and _same_path(run.get("data", ""), path))
        split = "test" if splits.test is not None else "val" if named else "all"
    if split == "test":
        if splits.test is None:
            raise ConfigError(f"{path}: has no test split, use --split val, or --split all for all its images")
        return split, _require_clean(splits.test, options), []
    if split == "val":
        return split, *_validation(splits)
    if splits.val is not None or splits.test is not None:
        raise ConfigError(f"{path}: its files name splits, choose --split test or --split val")
    return split, splits.train, []


def _validation(splits: NamedSplits) -> tuple[Source, list[str]]:
    if (val := splits.val) is not None:
        return val, []
    val = split_by_hash(splits)[1]
    return val, [f"{splits.root}: names no validation split, {len(val.records)} images chosen by the hash of their ids"]


def _require_clean(source: Source, options: Options) -> Source:
    """Raise DataError if a test split, which is always opened, has something that the options do not accept."""
    allow_missing, fix, _ = options
    refused = [problem for problem in source.problems if problem.action == "refused"]
    labels = [problem for problem in refused if parse_object(problem.record) is not None]
    missing = [problem for problem in refused if parse_object(problem.record) is None]
    if missing and not allow_missing:
        raise RecordsError(missing, f"{len(missing)} images cannot be used; restore them, or allow missing images.")
    if labels and fix == "error" and not missing:
        raise RecordsError(labels, f"{len(labels)} objects cannot be used. Correct them, or drop them (--fix drop).")
    return source


def _build_data(
    data: str | Path, source: Source, task: DetectionTask | SegmentationTask, batch_size: int, num_workers: int
) -> MixedSupervisionDataModule:
    """Return a data module that measures all images of a source at the size of the network input."""
    detector = task.detector if isinstance(task, DetectionTask) else task.model.detector
    module = MixedSupervisionDataModule(
        str(data), image_size=detector.image_size, batch_size=batch_size, num_workers=num_workers
    )
    saved = task.hparams.get("image_range")
    module.use(DataSet(source, source, "", Path(data), fixed_range=ImageRange(*saved) if saved else None))
    return module


def _read_run(checkpoint: Path) -> Mapping[str, Any]:
    """Return the content of the `run.json` of the run that a checkpoint lies in, empty if there is none."""
    for folder in list(checkpoint.resolve().parents)[:LEVELS]:
        file = folder / "run.json"
        if file.is_file():
            try:
                content = json.loads(file.read_text())
            except (OSError, ValueError) as error:
                raise DataError(f"{file}: cannot be read as JSON ({error}), restore or remove it") from error
            return content if isinstance(content, dict) else {}
    return {}


def _same_path(first: str, second: Path) -> bool:
    return bool(first) and Path(first).expanduser().resolve() == second.resolve()


def _write(result: Evaluation, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_label_audit(result.rows, folder / "labels.csv")
    write_json(folder / "results.json", _finite(result.as_dict()))


def _finite(value: Any) -> Any:
    """Return the value with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
