"""The error page of a run: sorted errors in numbers, the class matrix, and the worst pictures of each kind."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.pixels import ImageRange
from dasnet_lightning.data.records import ImageRecord
from dasnet_lightning.metrics.errors import ERRORS
from dasnet_lightning.report import Picture, Report, Table, Value, write_report
from dasnet_lightning.rle import decode
from dasnet_lightning.training.results import BudgetResult, RunResult
from dasnet_lightning.visualization import draw_segmentation, readable_scale

ERROR_PAGE = "errors.html"
MAX_CLASSES = 25  # columns of a matrix that can be read
NAMES = {"mask_error": "mask error"}
COUNT_NOTE = (
    "Detections from the score threshold on, assigned to objects by boxes at an IoU of 0.5. Right: box and class right, mask "
    "IoU at least 0.5 or no true mask. Missed: no detection of any class. Confused: the covered object is of another "
    "class. Duplicate: a second detection of an object. Background: no object is covered by half, badly placed boxes "
    "included. Mask error: box and class right, mask IoU below 0.5. An object may be found and also be confused."
)
MATRIX_NOTE = (
    "Rows: the true class. Columns: the detected class. Objects that no detection covers are in the column 'missed', "
    "detections that cover no object in the row 'background'; duplicates are left out. The diagonal holds mask errors too."
)


def error_tables(result: RunResult) -> list[Table]:
    """Return the counts of each kind of error by budget; no table if an earlier version measured the run."""
    kinds = ("objects", "right", *ERRORS)
    source = _source(result)
    rows: list[list[Value]] = [
        [item.budget, *(item.errors[source][kind] for kind in kinds)]
        for item in result.budgets
        if source in item.errors
    ]
    boxes = source.replace("_", " ").replace("ground truth", "ground-truth")
    title = f"Errors, {boxes}"
    return [Table(title, ["mask budget", *(NAMES.get(kind, kind) for kind in kinds)], rows, COUNT_NOTE)] if rows else []


def write_error_page(result: RunResult, title: str) -> Path | None:
    """Write `errors.html` into the run folder, with pictures of the last budget; None without sorted errors."""
    last, tables = result.budgets[-1], error_tables(result)
    summary = _read(last).get(_source(result))
    if not tables or summary is None:
        return None
    report = Report(
        title=f"{title}: errors",
        summary=f"What goes wrong on the validation images. Class matrix and pictures: {last.budget} masks.",
        tables=[*tables, matrix_table(summary["pairs"], result.class_names)],
        pictures=error_pictures(result, summary["worst"]),
    )
    return write_report(result.folder / ERROR_PAGE, report)


def _source(result: RunResult) -> str:
    return "detected_boxes" if result.detects else "ground_truth_boxes"


def _read(item: BudgetResult) -> Mapping[str, Any]:
    path = Path(item.checkpoint).parent / "errors.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def matrix_table(pairs: list[list[int]], class_names: tuple[str, ...]) -> Table:
    """Return the matrix of true and detected classes, of the classes with the most errors if there are many."""
    counts = {(true, found): count for true, found, count in pairs}
    errors: dict[int, int] = {}
    for (true, found), count in counts.items():
        for label in {true, found} - {0}:
            errors[label] = errors.get(label, 0) + (count if true != found else 0)
    labels = sorted(sorted(errors, key=lambda label: -errors[label])[:MAX_CLASSES])
    rows: list[list[Value]] = [
        ["background" if true == 0 else class_names[true], *(counts.get((true, found), 0) for found in [*labels, 0])]
        for true in [*labels, 0]
    ]
    if rows:
        rows[-1][-1] = None
    cut = f" The {MAX_CLASSES} classes with the most errors." if len(errors) > MAX_CLASSES else ""
    return Table("Class matrix", ["", *(class_names[label] for label in labels), "missed"], rows, MATRIX_NOTE + cut)


def error_pictures(result: RunResult, worst: Mapping[str, list[dict[str, Any]]]) -> list[Picture]:
    """Draw the worst errors of each kind: the detection beside the object."""
    records = {record.image_id: record for record in result.val_set.records}
    return [
        _draw(kind, item, records[item["image_id"]], result.val_set.image_range, result.class_names)
        for kind in ERRORS
        for item in worst[kind]
        if item["image_id"] in records
    ]


def _draw(
    kind: str, item: Mapping[str, Any], record: ImageRecord, image_range: ImageRange | None, names: tuple[str, ...]
) -> Picture:
    image = read_image(record.path, image_range=image_range)
    panels = {}
    for title, prefix in (("detected", ""), ("true", "true_")):
        label = item[f"{prefix}label"]
        score = item["score"] if not prefix else None
        objects = [] if label is None else [(item[f"{prefix}box"], label, item[f"{prefix}mask"])]
        masks = np.concatenate(
            [
                decode([mask.encode("ascii")], tuple(item["size"]))
                if mask
                else np.zeros((1, *item["size"]), dtype=bool)
                for _, _, mask in objects
            ]
            or [np.zeros((0, *item["size"]), dtype=bool)]
        )
        panels[title] = draw_segmentation(
            image,
            [box for box, _, _ in objects],
            [label for _, label, _ in objects],
            [score] if score is not None else None,
            masks,
            names,
            scale=readable_scale(image),
        )
    caption = record.path.name + (f", mask IoU {item['mask_iou']:.2f}" if item["mask_iou"] is not None else "")
    return Picture(
        f"{NAMES.get(kind, kind)}: {_describe(item, names)}",
        panels["detected"],
        caption,
        {"true": panels["true"]},
        "detected",
    )


def _describe(item: Mapping[str, Any], names: tuple[str, ...]) -> str:
    true, found = (None if item[key] is None else names[item[key]] for key in ("true_label", "label"))
    return str(true or found) if not (true and found) or true == found else f"{true} detected as {found}"
