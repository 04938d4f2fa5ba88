"""The tables of a run: metrics by budget and kind of boxes, with the floors of filled boxes, and the use of the labels."""

import math
from collections.abc import Iterator, Mapping

from dasnet_lightning.data.obstacles import validation_obstacle
from dasnet_lightning.metrics.floors import FLOORS
from dasnet_lightning.metrics.matching import NOT_ANNOTATED
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.report import Table, Value
from dasnet_lightning.training.results import RunResult

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


def box_sources(result: RunResult) -> Mapping[str, str]:
    """Return the kinds of boxes that were measured, by title; the detector `boxes` finds none."""
    return {title: kind for title, kind in BOXES.items() if result.detects or kind == "ground_truth_boxes"}


def floors(result: RunResult) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    """Yield title, shape and metrics of the filled boxes, again for a budget whose joint training changed the boxes.

    Nothing is yielded for a run of an earlier version, which did not measure them.
    """
    shown: list[dict[str, float]] = []
    for item in result.budgets:
        names = [f"val/{shape}_miou_" for shape in FLOORS] + [f"val/{shape}_apr50_area_" for shape in FLOORS]
        values = {
            key: value for key, value in item.metrics.items() if key.startswith(tuple(names)) and key.count("/") == 1
        }
        if not values or any(_same(values, other) for other in shown):
            continue
        note = f", boxes of {item.budget}" if shown else ""
        shown.append(values)
        for shape in FLOORS:
            yield f"none: filled {shape}s{note}", shape, item.metrics


def _same(values: Mapping[str, float], others: Mapping[str, float]) -> bool:
    return all(value == others.get(key) or value != value for key, value in values.items())


def _explain_gaps(result: RunResult, note: str) -> str:
    """Return the note of a table of mask metrics, which says why there are none."""
    obstacle = validation_obstacle(result.val_set.source)
    return f"-: {obstacle}. {note}" if obstacle else note


def results_table(result: RunResult) -> Table:
    """Return the mIoU of each budget, with ground-truth and with detected boxes."""
    sources = box_sources(result)
    rows: list[list[Value]] = [
        [title, 0, 0, *(measured(result, metrics, f"val/{shape}_miou_{kind}") for kind in sources.values())]
        for title, shape, metrics in floors(result)
    ]
    rows += [
        [
            item.budget,
            item.mask_images,
            item.mask_objects,
            *(measured(result, item.metrics, f"val/miou_{kind}") for kind in sources.values()),
        ]
        for item in result.budgets
    ]
    header = ["mask budget", "images with masks", "masks", *(f"mIoU, {boxes}" for boxes in sources)]
    return Table("Semantic segmentation", header, rows, _explain_gaps(result, MIOU_NOTE))


def instance_table(result: RunResult) -> Table:
    """Return the mask AP of each budget, with ground-truth and with detected boxes."""
    entries = [(title, f"{shape}_", metrics) for title, shape, metrics in floors(result)]
    entries += [(item.budget, "", item.metrics) for item in result.budgets]
    rows: list[list[Value]] = [
        [
            title,
            boxes,
            *(measured(result, metrics, f"val/{prefix}{name}_{kind}") for name in INSTANCE_FIGURES.values()),
        ]
        for title, prefix, metrics in entries
        for boxes, kind in box_sources(result).items()
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
    return [*tables, joint_table(result)] if result.config.joint_steps and result.detects else tables


def detection_table(result: RunResult) -> Table:
    """Return the box AP of the detector."""
    names = ("val/box_ap50", "val/box_ap75", "val/box_ap", "score_threshold")
    values = [measured(result, result.detection, name) for name in names]
    gap = f"-: {validation_obstacle(result.val_set.source)}. " if None in values else ""
    return Table("Detection", ["AP50", "AP75", "AP", "score threshold"], [values], gap + AP_NOTE)


def own_figure(result: RunResult) -> tuple[str, str]:
    """Return the main metric of the run's task: its key and its title."""
    return ("apr50_area", "mAP^r 0.5 (area)") if result.config.task == "instance" else ("miou", "mIoU")


def per_class_tables(result: RunResult) -> list[Table]:
    """Return the IoU of each class, or AP^r at 0.5 for instances, by budget and kind of boxes."""
    figure, title = ("apr50_area", "AP^r 0.5 (area)") if result.config.task == "instance" else ("iou", "IoU")
    tables = []
    for kind, suffix in box_sources(result).items():
        columns = [(title, f"val/{shape}_{figure}_{suffix}/", metrics) for title, shape, metrics in floors(result)]
        columns += [(f"{item.budget} masks", f"val/{figure}_{suffix}/", item.metrics) for item in result.budgets]
        rows = [
            [name, *(measured(result, metrics, prefix + name) for _, prefix, metrics in columns)]
            for name in result.class_names
        ]
        header = ["class", *(title for title, _, _ in columns)]
        tables.append(Table(f"{title} by class, {kind}", header, rows, "-: not in the validation set."))
    return tables


def accounting_table(result: RunResult) -> Table:
    """Return the counts of the labels by budget, class and use."""
    rows: list[list[Value]] = []
    header: list[str] = []
    for budget, classes in result.accounting.items():
        for name, counts in classes.items():
            header = ["budget", "class", *counts]
            rows.append([budget, name, *counts.values()])
    return Table("Labels and their use", header, rows, "One row per object is in labels.csv beside each checkpoint.")
