"""The results as CSV files: one line for each row of a point, appended in one write; finished points are not run again."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .measure import GROUPS, KINDS, OBJECT_MEASURES, SET_MEASURES, ObjectScores

KEY = ("dataset", "backbone", "method", "budget", "seed", "seconds")
FACTS = (
    "images", "masks", "objects_by_class", "train_cpu_s", "steps", "prepare_cpu_s", "parameters",
    "gmac_box", "ms_box", "point_cpu_s", "torch",
)  # fmt: skip
MEASURES = tuple(
    f"{kind}/{group}/{name}"
    for kind in KINDS
    for group in GROUPS
    for name in ((*OBJECT_MEASURES, *SET_MEASURES) if kind != "detected" else SET_MEASURES)
)
COLUMNS = (*KEY, *FACTS, *MEASURES)
OBJECT_COLUMNS = (*KEY, "kind", "iou_in_thousandths")
INDEX = "(index)"  # in place of a method: the image of each object, and whether its class is reported

Key = tuple[str, ...]
Row = Mapping[str, str]


def make_key(values: Mapping[str, object]) -> Key:
    """Return what identifies a row."""
    return tuple(str(values[name]) for name in KEY)


def read_rows(path: Path, columns: tuple[str, ...] = COLUMNS) -> dict[Key, Row]:
    """Return the finished rows by key; a line that was cut off does not count.

    Raises:
        SystemExit: the file has other columns.
    """
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != columns:
            raise SystemExit(f"{path}: the columns are not those of this version, move the file away")
        lines = [line for line in reader if len(line) == len(columns)]
    rows = [dict(zip(columns, line, strict=True)) for line in lines]
    names = (*KEY, "kind") if "kind" in columns else KEY
    return {tuple(row[name] for name in names): row for row in rows}


def append_row(path: Path, values: Mapping[str, object], columns: tuple[str, ...] = COLUMNS) -> None:
    """Append a row in one write; the first row brings the header.

    Several processes may append to one file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        writer.writerow(columns)
    elif not path.read_bytes().endswith(b"\n"):
        text.write("\n")  # ends a line that was cut off
    writer.writerow([_format(values.get(name, "")) for name in columns])
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, text.getvalue().encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def append_objects(
    path: Path, values: Mapping[str, object], kind: str, objects: ObjectScores, main: tuple[int, ...]
) -> None:
    """Append the IoU of each validation object, from which paired intervals can be computed.

    Args:
        path: the file.
        values: what identifies the row.
        kind: kind of the boxes.
        objects: the values.
        main: labels of the reported classes.
    """
    study = {"dataset": values["dataset"], "backbone": values["backbone"], "method": INDEX}
    if (*(str(study.get(name, "")) for name in KEY), "image") not in read_rows(path, OBJECT_COLUMNS):
        for name, numbers in (("image", objects.image), ("main", np.isin(objects.label, main).astype(int))):
            text = " ".join(map(str, numbers.tolist()))
            append_row(path, {**study, "kind": name, "iou_in_thousandths": text}, OBJECT_COLUMNS)
    thousandths = " ".join(map(str, np.rint(1000 * objects.iou).astype(int).tolist()))
    append_row(path, {**values, "kind": kind, "iou_in_thousandths": thousandths}, OBJECT_COLUMNS)


def objects_path(path: Path) -> Path:
    """Return the file with the objects' values beside a file of results."""
    return path.with_name(f"{path.stem}_objects.csv")


def _format(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
