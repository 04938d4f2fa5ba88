"""The results of a run: tables on the terminal, and the report page with curves and pictures."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from dasnet_lightning import console
from dasnet_lightning.console import print_table
from dasnet_lightning.data.obstacles import validation_obstacle
from dasnet_lightning.metrics.matching import NOT_ANNOTATED
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.report import Curve, KeyFigure, Report, Table, Value, write_report
from dasnet_lightning.training.config import RunConfig
from dasnet_lightning.training.pictures import draw_pictures
from dasnet_lightning.training.results import RunResult
from dasnet_lightning.training.stage import read_curves

BOXES = {"ground-truth boxes": "ground_truth_boxes", "detected boxes": "detected_boxes"}
MIOU_NOTE = (
    "Mean IoU over the background and all classes of the validation set, at the images' own resolution, without void "
    "pixels (255). The difference between the two columns is the detector's share of the error."
)
AP_NOTE = (
    "COCO protocol: 101-point interpolation; AP is the mean over IoU 0.50 to 0.95. "
    "Class maps are made of detections from the score threshold on."
)
INSTANCE_NOTE = (
    "Masks at the images' own resolution, void pixels left out. mAP^r after VOC and SDS: each mask goes to the object of "
    "largest IoU, duplicates are false; area: under precision over recall, 11-point: VOC 2007. COCO: 101-point, AP is the "
    f"mean over IoU 0.50 to 0.95. Detections count from a score of {InstanceOptions().lowest_score} on in the instance "
    "task, from the score threshold on in the semantic one."
)
INSTANCE_FIGURES = {
    "mAP^r 0.5 (area)": "apr50_area",
    "0.7 (area)": "apr70_area",
    "0.75 (area)": "apr75_area",
    "0.5 (11-point)": "apr50_11point",
    "0.7 (11-point)": "apr70_11point",
    "0.75 (11-point)": "apr75_11point",
    "COCO AP": "coco_ap",
    "COCO AP50": "coco_ap50",
}


def measured(result: RunResult, metrics: Mapping[str, float], name: str) -> float | None:
    """Return a metric, or None if there was nothing to measure it on.

    AP is then -1. A mIoU over the background alone says nothing, so it is None too.
    """
    value = metrics.get(name, NOT_ANNOTATED)
    without_masks = "iou" in name and bool(validation_obstacle(result.val_set.source))
    return None if value == NOT_ANNOTATED or math.isnan(value) or without_masks else value


def _explain_gaps(result: RunResult, note: str) -> str:
    """Return the note of a table of mask metrics, which says why there are none."""
    obstacle = validation_obstacle(result.val_set.source)
    return f"-: {obstacle}. {note}" if obstacle else note


def results_table(result: RunResult) -> Table:
    """Return the mIoU of each budget, with ground-truth and with detected boxes."""
    rows: list[list[Value]] = [
        [
            item.budget,
            item.mask_images,
            item.mask_objects,
            *(measured(result, item.metrics, f"val/miou_{kind}") for kind in BOXES.values()),
        ]
        for item in result.budgets
    ]
    header = ["mask budget", "images with masks", "masks", *(f"mIoU, {boxes}" for boxes in BOXES)]
    return Table("Semantic segmentation", header, rows, _explain_gaps(result, MIOU_NOTE))


def instance_table(result: RunResult) -> Table:
    """Return the mask AP of each budget, with ground-truth and with detected boxes."""
    rows: list[list[Value]] = [
        [
            item.budget,
            boxes,
            *(measured(result, item.metrics, f"val/{name}_{kind}") for name in INSTANCE_FIGURES.values()),
        ]
        for item in result.budgets
        for boxes, kind in BOXES.items()
    ]
    header = ["mask budget", "boxes", *INSTANCE_FIGURES]
    return Table("Instance segmentation", header, rows, _explain_gaps(result, INSTANCE_NOTE))


def joint_table(result: RunResult) -> Table:
    """Return the detector's box AP before and after joint training."""
    names = ("val/box_ap50", "val/box_ap")
    before = [measured(result, result.detection, name) for name in names]
    rows: list[list[Value]] = [["stage one", *before]]
    rows += [
        [item.budget, *(measured(result, item.metrics, name) for name in names)]
        for item in result.budgets
        if "val/box_ap50" in item.metrics
    ]
    return Table("The detector in joint training", ["after", "box AP50", "box AP"], rows, AP_NOTE)


def mask_tables(result: RunResult) -> list[Table]:
    """Return the tables of stage two, the run's own task first."""
    tables = [results_table(result), instance_table(result)]
    tables = tables[::-1] if result.config.task == "instance" else tables
    return [*tables, joint_table(result)] if result.config.joint_steps else tables


def detection_table(result: RunResult) -> Table:
    """Return the box AP of the detector."""
    names = ("val/box_ap50", "val/box_ap75", "val/box_ap", "score_threshold")
    values = [measured(result, result.detection, name) for name in names]
    gap = f"-: {validation_obstacle(result.val_set.source)}. " if None in values else ""
    return Table("Detection", ["AP50", "AP75", "AP", "score threshold"], [values], gap + AP_NOTE)


def write_page(result: RunResult, title: str, command: Sequence[str], pictures: int = 8) -> Path:
    """Write the report of a run into its folder, with pictures of validation images."""
    config = result.config
    last = result.budgets[-1]
    figure, name = own_figure(result)
    true = "ground-truth boxes"
    report = Report(
        title=title,
        summary=(
            f"Boxes on every training image, masks on {_join([str(item.mask_images) for item in result.budgets])} of them. "
            f"Detector {result.detector}, decoder {config.decoder}."
            + "".join(f" Note: {note}." for note in result.notes)
        ),
        key_figures=[
            *(
                KeyFigure(
                    f"{name}, {item.budget} masks",
                    measured(result, item.metrics, f"val/{figure}_ground_truth_boxes"),
                    true,
                )
                for item in result.budgets
            ),
            KeyFigure(
                f"{name}, detected boxes",
                measured(result, last.metrics, f"val/{figure}_detected_boxes"),
                f"{last.budget} masks",
            ),
            KeyFigure("box AP50", measured(result, result.detection, "val/box_ap50"), "COCO protocol"),
        ],
        tables=[*mask_tables(result), detection_table(result), *per_class_tables(result)],
        curves=run_curves(result),
        pictures=[*draw_pictures(result, pictures)],
        accounting=accounting_table(result),
        command=command[0] if len(command) == 1 else shlex.join(command),
        configuration=yaml.safe_dump(plain(asdict(config)), sort_keys=False),
    )
    return write_report(config.folder / "report.html", report)


def own_figure(result: RunResult) -> tuple[str, str]:
    """Return the main metric of the run's task: its key and its title."""
    return ("apr50_area", "mAP^r 0.5 (area)") if result.config.task == "instance" else ("miou", "mIoU")


def per_class_tables(result: RunResult) -> list[Table]:
    """Return the IoU of each class, or AP^r at 0.5 for instances, by budget and kind of boxes."""
    figure, title = ("apr50_area", "AP^r 0.5 (area)") if result.config.task == "instance" else ("iou", "IoU")
    tables = []
    for kind, suffix in BOXES.items():
        prefix = f"val/{figure}_{suffix}/"
        rows = [
            [name, *(measured(result, item.metrics, prefix + name) for item in result.budgets)]
            for name in result.class_names
        ]
        header = ["class", *(f"{item.budget} masks" for item in result.budgets)]
        tables.append(Table(f"{title} by class, {kind}", header, rows, "-: not in the validation set."))
    return tables


def run_curves(result: RunResult) -> list[Curve]:
    """Return losses and validation metrics of all stages by step."""
    folder, (figure, title) = result.config.folder, own_figure(result)
    detector = read_curves(folder / "detector")
    budgets = {item.budget: read_curves(Path(item.checkpoint).parent) for item in result.budgets}
    losses = {"stage one": _points(detector, "train/loss")}
    curves = [
        Curve("Stage one: loss", "step", "loss", losses),
        Curve("Stage one: box AP50", "step", "AP50", {"AP50": _points(detector, "val/box_ap50")}),
        Curve("Stage two: loss", "step", "loss", {name: _points(log, "train/loss") for name, log in budgets.items()}),
        Curve(
            f"Stage two: {title} with ground-truth boxes",
            "step",
            title,
            {name: _points(log, f"val/{figure}_ground_truth_boxes") for name, log in budgets.items()},
        ),
    ]
    return [curve for curve in curves if any(curve.series.values())]


def _points(log: Mapping[str, list[tuple[float, float]]], name: str) -> list[tuple[float, float]]:
    """Return the logged points of a metric without those where there was nothing to measure."""
    return [point for point in log.get(name, []) if point[1] != NOT_ANNOTATED]


def accounting_table(result: RunResult) -> Table:
    """Return the counts of the labels by budget, class and use."""
    rows: list[list[Value]] = []
    header: list[str] = []
    for budget, classes in result.accounting.items():
        for name, counts in classes.items():
            header = ["budget", "class", *counts]
            rows.append([budget, name, *counts.values()])
    return Table("Labels and their use", header, rows, "One row per object is in labels.csv beside each checkpoint.")


def plain(value: object) -> object:
    """Return the value as plain lists and dicts for YAML's safe dumper."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def announce(result: RunResult, page: Path) -> None:
    """Print where report and checkpoints are."""
    console.out(f"report: {page}")
    for item in result.budgets:
        console.out(f"checkpoint ({item.budget} masks): {item.checkpoint}")


def _join(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def finish(config: RunConfig, result: RunResult, title: str, command: Sequence[str]) -> None:
    """Print the tables and write the page."""
    print_table(detection_table(result))
    for table in mask_tables(result):
        print_table(table)
    announce(result, write_page(result, title, command))
