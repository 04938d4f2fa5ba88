"""Writer of labelme files: `SPLIT/NAME.json` beside each image.

Each part of a mask is a polygon; parts of one object share a group_id. An object without a mask is a rectangle.
Files of a labelme data set are edited: what did not change stays as it is.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dasnet_lightning.data.records import Source
from dasnet_lightning.data.sources.coco_json import read_json
from dasnet_lightning.data.sources.model_masks import MODEL, points_checksum
from dasnet_lightning.data.sources.shapes import ShapeSource
from dasnet_lightning.data.writers.base import (
    ImageLabels,
    ObjectLabel,
    Writer,
    differs_from_box,
    original_source,
    write_new,
)

VERSION = "5.5.0"  # of labelme's format
VOID_LOST = "images have void pixels, which become background, because labelme has no void"
BOX_LOST = "boxes differ from their masks by more than a pixel, labelme keeps the extent of the mask"


class LabelmeWriter(Writer):
    """Writer of labelme's JSON files; the flag "ignore" marks crowd and difficult objects."""

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        super().__init__(root, class_names)
        self._roots: dict[str, Path | None] = {}

    def image_folder(self, split: str) -> Path:
        return self.root / split

    def begin(self, split: str, source: Source) -> None:
        origin = original_source(source)
        own = isinstance(origin, ShapeSource) and origin.format == "labelme"
        self._roots[split] = origin.root if own else None

    def add(self, split: str, labels: ImageLabels) -> None:
        file = (self.root / split / labels.file_name).with_suffix(".json")
        old = self._roots.get(split)
        old_file = None if old is None else old / f"{labels.image_id}.json"
        if old_file is not None and old_file.is_file():
            content = edited_labelme(read_json(old_file), labels, self.class_names)
        else:
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


def edited_labelme(content: dict[str, Any], labels: ImageLabels, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the content of a labelme file with the objects that are marked as changed; all else stays as it is.

    Args:
        content: the content that the labels were read from.
        labels: the objects; each id ends in the number of its first shape in the file.
        class_names: names by label.
    """
    shapes = content["shapes"]
    groups = [shape.get("group_id") for shape in shapes if isinstance(shape, dict)]
    free = 1 + max((group for group in groups if type(group) is int), default=0)
    new: dict[int, list[Any]] = {}
    for item in labels.objects:
        if not item.changed:
            continue
        number = int(item.object_id.rsplit("/", 1)[1])
        first = shapes[number]
        drawn = _shapes(labels, item, first["label"], free)
        free += len(drawn) > 1
        if first.get("group_id") is not None:  # the other shapes of the group are replaced too
            for place, other in enumerate(shapes):
                if _same_group(first, other):
                    new.setdefault(place, [])
        own = {key: value for key, value in first.items() if key not in ("flags", "description")}
        flags = {key: value for key, value in (first.get("flags") or {}).items() if key != MODEL}
        new[number] = [{**own, **shape, "flags": {**flags, **shape["flags"]}} for shape in drawn]
    written = [shape for place, old in enumerate(shapes) for shape in new.get(place, [old])]
    return {**content, "shapes": written, "imagePath": Path(labels.file_name).name}


def _same_group(first: dict[str, Any], other: Any) -> bool:
    keys = ("label", "group_id")
    return isinstance(other, dict) and [first.get(key) for key in keys] == [other.get(key) for key in keys]


def _shapes(labels: ImageLabels, item: ObjectLabel, name: str, number: int) -> list[dict[str, Any]]:
    flags = {"ignore": True} if item.ignore else {}
    x0, y0, x1, y1 = item.box
    if item.mask is None:
        return [_shape(name, [[x0, y0], [x1, y1]], "rectangle", None, flags)]
    rings = labels.outlines(item)
    group = number if len(rings) > 1 else None
    shapes = [_shape(name, ring.tolist(), "polygon", group, flags) for ring in rings]
    return [_mark(shape, item) if item.by_model else shape for shape in shapes]


def _mark(shape: dict[str, Any], item: ObjectLabel) -> dict[str, Any]:
    """Return a shape with the marks of a mask that a model made; correcting its points invalidates the checksum."""
    quality = "" if item.quality is None else f"quality {item.quality}, "
    text = f"made by a model, {quality}checksum {points_checksum(shape['points'])}"
    return {**shape, "description": text, "flags": {**shape["flags"], MODEL: True}}


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
