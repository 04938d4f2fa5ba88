"""CVAT XML 1.1 "for images": polygons, ellipses and masks are masks; a box is a box without a mask.

Shapes with one label and one `group_id` are one object, as in CVAT's own COCO export. Attributes are not used, except those
of masks that a model made. Shapes that overlap keep all their pixels whatever their `z_order`.
"""

import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dasnet_lightning.data.images import IMAGE_SUFFIXES
from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import MAX_SIDE, RecordsError
from dasnet_lightning.data.sources.drawing import Bitmap, DrawnImage, DrawnObject, ellipse, merge_group, rotate_box
from dasnet_lightning.data.sources.image_index import ImageIndex, index_images
from dasnet_lightning.data.sources.model_masks import is_model_element
from dasnet_lightning.data.sources.shape_data import ShapeData, SplitContent, split_name
from dasnet_lightning.errors import DataError

HEAD_BYTES = 2048
USED_TAGS = ("box", "polygon", "mask", "ellipse")


@dataclass(eq=False)
class _Reader:
    """State while the images of several files are read."""

    root: Path
    index: ImageIndex
    splits: dict[str, SplitContent]
    names: dict[str, None]
    image_ids: dict[str, Path]


def find_cvat(root: Path) -> ShapeData | None:
    """Read the CVAT data set at `root`, a folder or one XML file; None if it is another format."""
    candidates = [root] if root.is_file() else sorted(root.glob("*.xml")) + sorted(root.glob("*/annotations.xml"))
    files = [path for path in candidates if path.suffix.lower() == ".xml" and _is_cvat(path)]
    return read_cvat(root if root.is_dir() else root.parent, files) if files else None


def read_cvat(root: Path, files: list[Path]) -> ShapeData:
    """Read CVAT files below a folder, each once; images of all files belong to one data set.

    Raises:
        DataError: a file is damaged, or annotates a video.
    """
    reader = _Reader(root, index_images(root), {}, {}, {})
    for file in files:
        _read_file(reader, file)
    return ShapeData("cvat", root, files[0], tuple(reader.names), reader.splits, files=tuple(files))


def _is_cvat(file: Path) -> bool:
    with file.open("rb") as stream:
        return b"<annotations" in stream.read(HEAD_BYTES)


def _read_file(reader: _Reader, file: Path) -> None:
    tree = _parse(file)
    if tree.find("track") is not None:
        raise DataError(f"{file}: annotates a video, export 'CVAT for images 1.1' instead")
    labels = [item.findtext("name", "").strip() for item in tree.iterfind("meta//labels/label")
              if item.findtext("type", "") != "skeleton" and item.find("parent") is None]  # fmt: skip
    reader.names.update(dict.fromkeys(labels))
    tasks = {item.findtext("id", ""): item.findtext("name", "") for item in tree.iterfind("meta//tasks/task")}
    faults = []
    for image in tree.iterfind("image"):
        split = image.get("subset") or tasks.get(image.get("task_id", ""), "")
        content = reader.splits.setdefault(_split_of(split, file, reader.root), SplitContent())
        fault = _read_image(reader, file, image, content)
        if fault:
            faults.append(Problem(file, f"image '{image.get('name', '')}'", fault, "refused"))
    if faults:
        raise RecordsError(faults, f"{len(faults)} images cannot be used; export the file again or correct them.")


def _split_of(written: str, file: Path, root: Path) -> str:
    """Return the split that a subset, a task or the folder of the file names; "all" if none does."""
    folder = file.parent.name if file.parent != root else ""
    known = [name for name in map(split_name, (written, folder, file.stem)) if name in ("train", "val", "test")]
    return known[0] if known else written or "all"


def _parse(file: Path) -> ET.Element:
    try:
        data = file.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise DataError(f"{file}: declares a DOCTYPE or entities, which CVAT never writes; refused, remove it")
        tree = ET.fromstring(data)
    except (OSError, ET.ParseError, ValueError) as error:
        raise DataError(f"{file}: is not valid XML ({error}), export the file again") from error
    if tree.tag != "annotations":
        raise DataError(f"{file}: begins with <{tree.tag}>, expected CVAT's <annotations>")
    return tree


def _read_image(reader: _Reader, file: Path, element: ET.Element, content: SplitContent) -> str:
    """Read one <image> into a split; return why it cannot be used, "" if it can."""
    name = element.get("name", "")
    try:
        size = int(element.get("height", "")), int(element.get("width", ""))
    except ValueError:
        size = (0, 0)
    if not (min(size) > 0 and max(size) <= MAX_SIDE):
        return f"has height '{element.get('height')}' and width '{element.get('width')}', expected pixels"
    if name in reader.image_ids:
        return f"occurs twice, also in {reader.image_ids[name].name}" if name else "has no name"
    reader.image_ids[name] = file
    path, reason = reader.index.find(name)
    shown = path.relative_to(reader.root).as_posix() if path else name
    if path is None:
        content.missing.append(Problem(file, f"image '{name}'", reason, "refused"))
    image_id = name.rsplit(".", 1)[0] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
    objects, ignored = _read_shapes(image_id, element)
    for item in objects:
        reader.names.setdefault(item.class_name)
    reader.names.pop("", None)
    content.ignored += ignored
    content.joined += len(element) - ignored.total() - len(objects)
    content.images.append(DrawnImage(image_id, shown, path, size, file, objects))
    return ""


def _read_shapes(image_id: str, image: ET.Element) -> tuple[tuple[DrawnObject, ...], Counter[str]]:
    groups: dict[tuple[str, str], list[DrawnObject]] = {}
    ignored = Counter(element.tag for element in image if element.tag not in USED_TAGS)
    for number, element in enumerate(element for element in image if element.tag in USED_TAGS):
        object_id, name = f"{image_id}/{number}", element.get("label", "").strip()
        try:
            item = replace(_read_shape(object_id, name, element), by_model=is_model_element(element))
        except ValueError as error:
            item = DrawnObject(object_id, name, None, fault=str(error))
        group = element.get("group_id", "0")
        groups.setdefault((name, object_id if group in ("0", "") else f"group {group}"), []).append(item)
    return tuple(merge_group(parts) for parts in groups.values()), ignored


def _read_shape(object_id: str, name: str, element: ET.Element) -> DrawnObject:
    """Read one shape. Raises ValueError that says what cannot be read."""
    rotation = float(element.get("rotation", "0") or 0)
    if element.tag == "box":
        x0, y0, x1, y1 = _numbers(element, "xtl", "ytl", "xbr", "ybr")
        box = (x0, y0, x1, y1)
        pivot = ((x0 + x1) / 2, (y0 + y1) / 2)
        return DrawnObject(object_id, name, rotate_box(box, pivot, rotation) if rotation else box, str(list(box)))
    if element.tag == "ellipse":
        cx, cy, rx, ry = _numbers(element, "cx", "cy", "rx", "ry")
        return DrawnObject(object_id, name, None, "of the ellipse", (ellipse((cx, cy), (rx, ry), rotation),))
    if element.tag == "mask":
        return _read_mask(object_id, name, element)
    points = element.get("points", "")
    try:
        polygon = [float(number) for point in points.strip(" ;").split(";") for number in _pair(point)]
    except ValueError:
        raise ValueError(f"'points' is '{points[:60]}', expected x,y;x,y;...") from None
    return DrawnObject(object_id, name, None, f"of the polygon with {len(polygon) // 2} points", (polygon,))


def _read_mask(object_id: str, name: str, element: ET.Element) -> DrawnObject:
    left, top, width, height = (int(value) for value in _numbers(element, "left", "top", "width", "height"))
    window = (float(left), float(top), float(left + width), float(top + height))
    shown = str(list(window))
    try:
        runs = np.array([int(text) for text in element.get("rle", "").split(",")], np.int64)
    except (ValueError, OverflowError):
        return DrawnObject(object_id, name, window, shown, mask_fault="'rle' is not a list of whole numbers")
    if (runs < 0).any() or int(runs.sum()) != width * height or min(width, height) <= 0:
        fault = f"the run lengths sum to {int(runs.sum())}, expected {width * height}"
        return DrawnObject(object_id, name, window, shown, mask_fault=fault)
    if not runs[1::2].any():
        return DrawnObject(object_id, name, window, shown, mask_fault="the mask is empty")
    return DrawnObject(object_id, name, None, shown, bitmaps=(Bitmap(runs, left, top, width, height),))


def _numbers(element: ET.Element, *keys: str) -> tuple[float, ...]:
    try:
        return tuple(float(element.attrib[key]) for key in keys)
    except (KeyError, ValueError):
        written = ", ".join(f"{key}='{element.get(key)}'" for key in keys)
        raise ValueError(f"the {element.tag} has {written}, expected numbers") from None


def _pair(text: str) -> tuple[str, str]:
    x, y = text.split(",")
    return x, y
