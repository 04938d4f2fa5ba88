"""Tables of an evaluation, with the columns of a training's report and the floors beside them."""

import math
from collections.abc import Mapping

from dasnet_lightning import console
from dasnet_lightning.console import print_table
from dasnet_lightning.metrics.matching import NOT_ANNOTATED
from dasnet_lightning.report import Table, Value
from dasnet_lightning.training.evaluation import Evaluation
from dasnet_lightning.training.result_tables import AP_NOTE, BOXES, INSTANCE_FIGURES, INSTANCE_NOTE, MIOU_NOTE

FLOOR_NOTE = "Filled shapes in the same boxes show what boxes alone reach."
USED = ("boxes", "refused", "ignored", "masks", "absent", "invalid")  # columns of the label counts


def print_evaluation(result: Evaluation) -> None:
    """Print what was measured, and its tables."""
    console.out(f"{result.data}: {result.images:,} images ({result.split}), {len(result.class_names) - 1} classes\n")
    for note in result.notes:
        console.out(f"note: {note}")
    for table in evaluation_tables(result):
        print_table(table)


def evaluation_tables(result: Evaluation) -> list[Table]:
    """Return the tables: box AP, and for a segmentation task mask AP and mIoU with the floors; then the labels."""
    names = ("box_ap50", "box_ap75", "box_ap")
    values = [_shown(result.metrics, name) for name in names]
    tables = [Table("Detection", ["AP50", "AP75", "AP"], [values], AP_NOTE)]
    if result.floors:
        masks = [_instance_table(result), _semantic_table(result)]
        tables += masks if result.task == "instance" else masks[::-1]
    rows: list[list[Value]] = [[name, *(counts[key] for key in USED)] for name, counts in result.labels.items()]
    return [*tables, Table("Labels", ["class", *USED], rows)]


def _instance_table(result: Evaluation) -> Table:
    rows: list[list[Value]] = [
        [name, boxes, *(_shown(metrics, f"{figure}_{kind}", result.obstacle) for figure in INSTANCE_FIGURES.values())]
        for boxes, kind in BOXES.items()
        for name, metrics in _sources(result).items()
    ]
    return Table("Instance segmentation", ["masks", "boxes", *INSTANCE_FIGURES], rows, _note(result, INSTANCE_NOTE))


def _semantic_table(result: Evaluation) -> Table:
    rows: list[list[Value]] = [
        [name, *(_shown(metrics, f"miou_{kind}", result.obstacle) for kind in BOXES.values())]
        for name, metrics in _sources(result).items()
    ]
    header = ["masks", *(f"mIoU, {boxes}" for boxes in BOXES)]
    return Table("Semantic segmentation", header, rows, _note(result, MIOU_NOTE))


def _sources(result: Evaluation) -> dict[str, Mapping[str, float]]:
    return {"checkpoint": result.metrics, **{f"filled {name}": values for name, values in result.floors.items()}}


def _note(result: Evaluation, note: str) -> str:
    gap = f"-: {result.obstacle}. " if result.obstacle else ""
    return f"{gap}{note.replace('validation set', 'evaluated images')} {FLOOR_NOTE}"


def _shown(metrics: Mapping[str, float], name: str, obstacle: str = "") -> float | None:
    """Return a metric, or None if there was nothing to measure it on."""
    value = metrics.get(name, NOT_ANNOTATED)
    return None if obstacle or value == NOT_ANNOTATED or math.isnan(value) else value
