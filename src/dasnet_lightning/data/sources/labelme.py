"""labelme files: one JSON per image. Polygons, circles and masks are masks; a rectangle is a box without a mask.

The flag "ignore" of a shape marks a crowd or difficult object, "model" a mask that a model made.
"""

import base64
import binascii
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dasnet_lightning.data.images import upright_size
from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import MAX_SIDE
from dasnet_lightning.data.sources.coco_json import is_instances, read_json
from dasnet_lightning.data.sources.drawing import DrawnImage, DrawnObject, ellipse, encode_bitmap, merge_group
from dasnet_lightning.data.sources.image_index import ImageIndex, index_images, list_files
from dasnet_lightning.data.sources.model_masks import is_model_shape
from dasnet_lightning.data.sources.shape_data import ShapeData, SplitContent, split_name

HEAD_BYTES = 4096
MAX_PEEKS = 5  # files that are looked into for the format
KEYS = (b'"shapes"', b'"imagePath"')
IGNORED_TYPES = ("point", "line", "linestrip", "points")


def find_labelme(root: Path) -> ShapeData | None:
    """Read the labelme data set at `root`, a folder or one file; None if it is another format.

    Folders below `root` that are named like splits are splits.
    """
    files = [root] if root.is_file() else list_files(root, (".json",))
    if not any(_is_labelme(file) for file in files[:MAX_PEEKS] if file.suffix.lower() == ".json"):
        return None
    return read_labelme(root if root.is_dir() else root.parent, files)


def read_labelme(root: Path, files: Sequence[Path]) -> ShapeData:
    """Read labelme files below a folder, each once."""
    index = index_images(root)
    splits: dict[str, SplitContent] = {}
    used: set[Path] = set()
    for file in files:
        top = split_name(file.relative_to(root).parts[0])
        name = top if len(file.relative_to(root).parts) > 1 else "all"
        content = splits.setdefault(name, SplitContent())
        _read_file(root, file, index, content, used)
    classes = {item.class_name for content in splits.values() for image in content.images for item in image.objects}
    filled = {
        name: content for name, content in splits.items() if content.images or content.missing or content.problems
    }
    return ShapeData("labelme", root, root, tuple(sorted(classes - {""})), filled)


def _is_labelme(file: Path) -> bool:
    """Whether the beginning of a file, or the whole if the beginning does not say, has the keys of labelme."""
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        if not head.lstrip().startswith(b"{") or b'"annotations"' in head or b'"categories"' in head:
            return False
        return KEYS[0] in head or (len(head) == HEAD_BYTES and all(key in stream.read() for key in KEYS))


def _read_file(root: Path, file: Path, index: ImageIndex, content: SplitContent, used: set[Path]) -> None:
    value = read_json(file)
    if is_instances(value):
        return  # a COCO file beside them, which counts as unused
    if not isinstance(value, dict) or not isinstance(value.get("shapes"), list):
        content.problems.append(Problem(file, "file", "is not a labelme file, it has no list 'shapes'", "refused"))
        return
    written = str(value.get("imagePath") or "")
    path, reason = index.find(written, file.parent) if written else (None, "has no 'imagePath'")
    path = path or index.find_stem(file.stem, file.parent)
    size = _read_size(value) or (upright_size(path) if path else (1, 1))
    image_id = file.relative_to(root).with_suffix("").as_posix()
    name = path.relative_to(root).as_posix() if path else written or file.stem
    if not content.take(file, f"image '{name}'", path, reason, used):
        return
    objects, ignored = _read_shapes(image_id, value["shapes"])
    content.ignored += ignored
    content.joined += len(value["shapes"]) - ignored.total() - len(objects)
    content.images.append(DrawnImage(image_id, name, path, size, file, objects))


def _read_shapes(image_id: str, shapes: Sequence[Any]) -> tuple[tuple[DrawnObject, ...], Counter[str]]:
    """Return the objects of a file, shapes of one group joined, and the counts of shapes that are not used."""
    groups: dict[tuple[str, str], list[DrawnObject]] = {}
    ignored: Counter[str] = Counter()
    for number, shape in enumerate(shapes):
        object_id = f"{image_id}/{number}"
        if not isinstance(shape, dict):
            groups["", object_id] = [DrawnObject(object_id, "", None, fault="is not a table of shape values")]
            continue
        kind = str(shape.get("shape_type") or "polygon")
        if kind in IGNORED_TYPES:
            ignored[kind] += 1
            continue
        item = replace(_read_shape(object_id, kind, shape), ignore=_is_ignored(shape), by_model=is_model_shape(shape))
        group = shape.get("group_id")
        key = (item.class_name, object_id if group is None else f"group {group}")
        groups.setdefault(key, []).append(item)
    return tuple(merge_group(parts) for parts in groups.values()), ignored


def _is_ignored(shape: dict[str, Any]) -> bool:
    """Return whether a shape has the flag "ignore", which marks crowd and difficult objects."""
    flags = shape.get("flags")
    return isinstance(flags, dict) and flags.get("ignore") is True


def _read_shape(object_id: str, kind: str, shape: dict[str, Any]) -> DrawnObject:
    name = str(shape.get("label") or "").strip()
    points = _read_points(shape.get("points"))
    if points is None:
        return DrawnObject(object_id, name, None, fault="'points' is not a list of x, y pairs")
    flat = [value for point in points for value in point]
    expected = {"rectangle": (2, 4), "circle": (2,), "mask": (2,)}.get(kind)
    shown = f"of the {kind} {points if len(points) <= 4 else f'with {len(points)} points'}"
    if expected and len(points) not in expected:
        return DrawnObject(object_id, name, None, fault=f"the {kind} has {len(points)} points, expected {expected[0]}")
    if kind == "polygon":
        return DrawnObject(object_id, name, None, shown, (flat,))
    if kind == "circle":
        radius = math.dist(points[0], points[1])
        return DrawnObject(object_id, name, None, shown, (ellipse((flat[0], flat[1]), (radius, radius)),))
    box = (min(flat[::2]), min(flat[1::2]), max(flat[::2]), max(flat[1::2]))
    if kind == "rectangle":
        return DrawnObject(object_id, name, box, shown)
    if kind == "mask":
        return _read_mask(object_id, name, shown, box, shape.get("mask"))
    return DrawnObject(object_id, name, None, fault=f"has the unknown shape type '{kind}'")


def _read_mask(object_id: str, name: str, shown: str, box: tuple[float, float, float, float], text: Any) -> DrawnObject:
    """Read a mask that is a PNG in base64; its two points are the first and the last pixel of its window."""
    left, top = round(box[0]), round(box[1])
    outer = (float(left), float(top), round(box[2]) + 1.0, round(box[3]) + 1.0)
    try:
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            mask = np.asarray(picture.convert("L")) > 0 if picture.mode != "1" else np.asarray(picture)
    except (TypeError, ValueError, OSError, SyntaxError, binascii.Error):
        return DrawnObject(object_id, name, outer, shown, mask_fault="the mask is not a PNG in base64")
    if mask.shape != (outer[3] - outer[1], outer[2] - outer[0]):
        fault = f"the mask has {mask.shape[1]}x{mask.shape[0]} pixels, its points span {outer[2] - left:g}x{outer[3] - top:g}"
        return DrawnObject(object_id, name, outer, shown, mask_fault=fault)
    if not mask.any():
        return DrawnObject(object_id, name, outer, shown, mask_fault="the mask is empty")
    return DrawnObject(object_id, name, None, shown, bitmaps=(encode_bitmap(mask, left, top),))


def _read_points(value: Any) -> list[list[float]] | None:
    try:
        points = [[float(x), float(y)] for x, y in value]
    except (TypeError, ValueError):
        return None
    return points or None


def _read_size(value: dict[str, Any]) -> tuple[int, int] | None:
    size = (value.get("imageHeight"), value.get("imageWidth"))
    return size if all(type(side) is int and 0 < side <= MAX_SIDE for side in size) else None  # type: ignore[return-value]
