"""What a run tells people: the table for the terminal, and the report page with curves and pictures."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from dasnet_lightning.cli.console import print_table, progress, say
from dasnet_lightning.cli.run_records import RunConfig, RunResult
from dasnet_lightning.cli.stages import read_curves
from dasnet_lightning.data.records import ImageRecord
from dasnet_lightning.inference import Segmenter, load
from dasnet_lightning.report import Curve, KeyFigure, Picture, Report, Table, Value, write_report
from dasnet_lightning.visualization import draw_boxes, draw_semantic, readable_scale, side_by_side

GROUND_TRUTH, DETECTED = "val/miou_ground_truth_boxes", "val/miou_detected_boxes"
MIOU_NOTE = (
    "Mean IoU over the background and all classes that occur in the validation set, at the images' own resolution; "
    "pixels marked 255 (void) are not counted. The difference between the two columns is the detector's share of the error."
)
AP_NOTE = (
    "COCO protocol: 101-point interpolation; AP is the mean over IoU 0.50 to 0.95. "
    "Detections below the score threshold are not decoded."
)


def results_table(result: RunResult) -> Table:
    """Budgets x {ground-truth boxes, detected boxes}."""
    rows: list[list[Value]] = [
        [item.budget, item.mask_images, item.mask_objects, item.metrics[GROUND_TRUTH], item.metrics[DETECTED]]
        for item in result.budgets
    ]
    header = ["mask budget", "images with masks", "masks", "mIoU, ground-truth boxes", "mIoU, detected boxes"]
    return Table("Semantic segmentation", header, rows, MIOU_NOTE)


def detection_table(result: RunResult) -> Table:
    """Box AP of the detector."""
    values = [result.detection[name] for name in ("val/box_ap50", "val/box_ap75", "val/box_ap", "score_threshold")]
    return Table("Detection", ["AP50", "AP75", "AP", "score threshold"], [values], AP_NOTE)


def write_page(result: RunResult, title: str, command: Sequence[str], pictures: int = 8) -> Path:
    """Write the report of a run into its folder; draws validation images with the last budget's network."""
    config = result.config
    last = result.budgets[-1]
    report = Report(
        title=title,
        summary=(
            f"Boxes on every training image, masks on {_join([str(item.mask_images) for item in result.budgets])} of them. "
            f"Detector {result.detector}, decoder {config.decoder}."
        ),
        key_figures=[
            *(
                KeyFigure(f"mIoU, {item.budget} masks", item.metrics[GROUND_TRUTH], "ground-truth boxes")
                for item in result.budgets
            ),
            KeyFigure("mIoU, detected boxes", last.metrics[DETECTED], f"{last.budget} masks"),
            KeyFigure("box AP50", result.detection["val/box_ap50"], "COCO protocol"),
        ],
        tables=[results_table(result), detection_table(result), *per_class_tables(result)],
        curves=run_curves(result),
        pictures=[*draw_pictures(result, pictures)],
        accounting=accounting_table(result),
        command=shlex.join(command),
        configuration=yaml.safe_dump(plain(asdict(config)), sort_keys=False),
    )
    return write_report(config.folder / "report.html", report)


def per_class_tables(result: RunResult) -> list[Table]:
    """IoU of each class, by budget, for both kinds of boxes."""
    tables = []
    for kind, prefix in (
        ("ground-truth boxes", "val/iou_ground_truth_boxes/"),
        ("detected boxes", "val/iou_detected_boxes/"),
    ):
        rows = [[name, *(item.metrics.get(prefix + name) for item in result.budgets)] for name in result.class_names]
        header = ["class", *(f"{item.budget} masks" for item in result.budgets)]
        tables.append(
            Table(f"IoU by class, {kind}", header, rows, "-: the class does not occur in the validation set.")
        )
    return tables


def run_curves(result: RunResult) -> list[Curve]:
    """Loss and validation figures of all stages against the step."""
    folder = result.config.folder
    detector = read_curves(folder / "detector")
    budgets = {item.budget: read_curves(Path(item.checkpoint).parent) for item in result.budgets}
    losses = {"stage one": detector.get("train/loss", [])}
    curves = [
        Curve("Stage one: loss", "step", "loss", losses),
        Curve("Stage one: box AP50", "step", "AP50", {"AP50": detector.get("val/box_ap50", [])}),
        Curve("Stage two: loss", "step", "loss", {name: log.get("train/loss", []) for name, log in budgets.items()}),
        Curve(
            "Stage two: mIoU with ground-truth boxes",
            "step",
            "mIoU",
            {name: log.get(GROUND_TRUTH, []) for name, log in budgets.items()},
        ),
    ]
    return [curve for curve in curves if any(curve.series.values())]


def draw_pictures(result: RunResult, count: int) -> list[Picture]:
    """Validation images spread over the set: what was detected, the masks of the first and the last budget, the truth."""
    segmenters = {item.budget: load(item.checkpoint) for item in (result.budgets[0], result.budgets[-1])}
    val_set = result.val_set
    masked = [index for index, record in enumerate(val_set.records) if record.has_masks]
    step = max(1, len(masked) // max(1, count))
    pictures = []
    for index in progress(masked[::step][:count], "pictures"):
        truth = val_set[(0, index)].target.truth
        if truth is not None:
            pictures.append(draw_row(segmenters, val_set.records[index], truth.semantic.numpy()))
    return pictures


def draw_row(segmenters: Mapping[str, Segmenter], record: ImageRecord, truth: np.ndarray) -> Picture:
    """One image in panels: detected boxes and their class map, class maps from ground-truth boxes by budget, the truth."""
    first = next(iter(segmenters))
    found = segmenters[first].segment(record.path)
    image, names = found.image, found.class_names
    scale = readable_scale(image)
    panels = {
        "detected boxes": draw_boxes(image, found.boxes, found.labels, found.scores, names, scale=scale),
        f"{first} masks, detected boxes": draw_semantic(image, found.semantic, names, scale=scale),
    }
    known = [item for item in record.objects if not item.ignore]
    boxes, labels = [item.box for item in known], [item.label for item in known]
    for budget, segmenter in segmenters.items():
        given = segmenter.segment(record.path, boxes=boxes, labels=labels)
        panels[f"{budget} masks, true boxes"] = draw_semantic(image, given.semantic, names, scale=scale)
    panels["ground truth"] = draw_semantic(image, truth, names, scale=scale)
    return Picture(record.path.name, side_by_side(list(panels.values()), list(panels)))


def accounting_table(result: RunResult) -> Table:
    """What became of the labels: by budget and class."""
    rows: list[list[Value]] = []
    header: list[str] = []
    for budget, classes in result.accounting.items():
        for name, counts in classes.items():
            header = ["budget", "class", *counts]
            rows.append([budget, name, *counts.values()])
    return Table("Labels and their use", header, rows, "One row per object is in labels.csv beside each checkpoint.")


def plain(value: object) -> object:
    """The value in lists and dicts, as YAML's safe dumper wants it."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def announce(result: RunResult, page: Path) -> None:
    """Say where everything is."""
    say(f"report: {page}")
    for item in result.budgets:
        say(f"checkpoint ({item.budget} masks): {item.checkpoint}")


def _join(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def finish(config: RunConfig, result: RunResult, title: str, command: Sequence[str]) -> None:
    """Print the tables and write the page."""
    print_table(detection_table(result))
    print_table(results_table(result))
    announce(result, write_page(result, title, command))
