"""Writer of labelme files: `SPLIT/NAME.json` beside each image.

Each part of a mask is a polygon; parts of one object share a group_id. An object without a mask is a rectangle.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dasnet_lightning.data.writers.base import ImageLabels, ObjectLabel, Writer, differs_from_box, write_new

VERSION = "5.5.0"  # of labelme's format
VOID_LOST = "images have void pixels, which become background, because labelme has no void"
BOX_LOST = "boxes differ from their masks by more than a pixel, labelme keeps the extent of the mask"


class LabelmeWriter(Writer):
    """Writer of labelme's JSON files; the flag "ignore" marks crowd and difficult objects."""

    def image_folder(self, split: str) -> Path:
        return self.root / split

    def add(self, split: str, labels: ImageLabels) -> None:
        file = (self.root / split / labels.file_name).with_suffix(".json")
        content = labelme_content(labels, self.class_names)
        write_new(file, (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode())
        self.count_loss(VOID_LOST, labels.void is not None)
        masked = [item for item in labels.objects if item.mask is not None]
        self.count_loss(BOX_LOST, sum(differs_from_box(labels.outlines(item), item.box) for item in masked))


def labelme_content(labels: ImageLabels, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the content of the file of one image."""
    shapes = [
        shape
        for number, item in enumerate(labels.objects, start=1)
        for shape in _shapes(labels, item, class_names[item.label], number)
    ]
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": Path(labels.file_name).name,
        "imageData": None,
        "imageHeight": labels.size[0],
        "imageWidth": labels.size[1],
    }


def _shapes(labels: ImageLabels, item: ObjectLabel, name: str, number: int) -> list[dict[str, Any]]:
    flags = {"ignore": True} if item.ignore else {}
    x0, y0, x1, y1 = item.box
    if item.mask is None:
        return [_shape(name, [[x0, y0], [x1, y1]], "rectangle", None, flags)]
    rings = labels.outlines(item)
    group = number if len(rings) > 1 else None
    return [_shape(name, ring.tolist(), "polygon", group, flags) for ring in rings]


def _shape(
    name: str, points: list[list[float]], shape_type: str, group: int | None, flags: dict[str, bool]
) -> dict[str, Any]:
    return {
        "label": name,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": shape_type,
        "flags": flags,
        "mask": None,
    }
