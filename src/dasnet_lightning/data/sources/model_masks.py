"""Marks of masks that a model made, in every format, and sources without these masks.

Such a mask is not a label of a person: no budget, split or evaluation counts it. Each format has its mark:

* COCO: `"source": "model"` of the annotation.
* labelme: the flag "model" of the shape, and a checksum of its points in the description. A shape that was corrected
  has other points and counts as drawn by a person.
* CVAT: the attribute "source" with the value "model", or CVAT's own `source="auto"`. CVAT changes that to "semi-auto" or
  "manual" when a person corrects the shape, which then counts as drawn by that person.
* VOC: `<mask_source>model</mask_source>` of the object.
* YOLO: the file `model_masks.txt` beside `data.yaml`, a line "LABEL FILE: CHECKSUM OF THE ROW" for each mask.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dasnet_lightning.data.hashing import hash_parts
from dasnet_lightning.data.records import MaskState, ObjectRecord, Source
from dasnet_lightning.data.sources.selection import Selection

MODEL = "model"
MASK_SOURCE = "mask_source"  # VOC's element
YOLO_FILE = "model_masks.txt"
EDITED = ("semi-auto", "manual")  # values of CVAT for a shape that a person drew or corrected

ModelMasks = Literal["ignore", "train", "keep"]


def is_model_row(row: Mapping[str, Any]) -> bool:
    """Return whether a COCO annotation says that a model made its mask."""
    return row.get("source") == MODEL


def is_model_shape(shape: Mapping[str, Any]) -> bool:
    """Return whether a labelme shape says that a model made it and still has the points of the model."""
    flags = shape.get("flags")
    if not isinstance(flags, dict) or flags.get(MODEL) is not True:
        return False
    return f"checksum {points_checksum(shape.get('points'))}" in str(shape.get("description") or "")


def points_checksum(points: Any) -> str:
    """Return a checksum of the points (x, y) of a labelme shape, rounded to a thousandth of a pixel."""
    try:
        numbers = [round(float(value) * 1000) for point in points for value in point]
    except (TypeError, ValueError, OverflowError):
        return ""
    return hash_parts([" ".join(map(str, numbers)).encode()])


def is_model_element(element: ET.Element) -> bool:
    """Return whether a CVAT shape says that a model made it and that nobody corrected it."""
    source = element.get("source", "")
    marked = any(
        item.get("name") == "source" and (item.text or "").strip() == MODEL for item in element.iterfind("attribute")
    )
    return source == "auto" or (marked and source not in EDITED)


def yolo_mark(label_file: str, row: str) -> str:
    """Return the line of `model_masks.txt` for a row of a label file, whose path is relative to the data set."""
    return f"{label_file}: {hash_parts([' '.join(row.split()).encode()])}"


def read_yolo_marks(root: Path) -> frozenset[str]:
    """Return the lines of `model_masks.txt`; none if the file does not exist."""
    file = root / YOLO_FILE
    return frozenset(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else frozenset()


def leave_out_model_masks(source: Source) -> Source:
    """Return a source whose masks by a model are ABSENT; the source itself if there are none."""
    if not any(item.by_model for record in source.records for item in record.objects):
        return source
    records = [replace(record, objects=tuple(map(_without_mask, record.objects))) for record in source.records]
    return Selection(source, records, source.problems)


def _without_mask(item: ObjectRecord) -> ObjectRecord:
    present = item.by_model and item.mask is MaskState.PRESENT
    return replace(item, mask=MaskState.ABSENT) if present else item
