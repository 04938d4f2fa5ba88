"""YOLO label files: a row of five numbers is a box without a mask, a longer row is a polygon; a file may mix both.

Coordinates are shares of the width and height of the upright image. Image headers are opened for their size only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dasnet_lightning.data.images import upright_size
from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.drawing import DrawnImage, DrawnObject, to_pixels
from dasnet_lightning.data.sources.image_index import assign_ids
from dasnet_lightning.data.sources.model_masks import read_yolo_marks, yolo_mark
from dasnet_lightning.data.sources.shape_data import ShapeData, SplitContent
from dasnet_lightning.data.sources.yolo_files import LabelFolders, YoloFiles, find_yolo_config, read_yolo_files
from dasnet_lightning.errors import DataError

MIN_SHARE, MAX_SHARE = -1.0, 2.0  # a coordinate beyond is not a share of the image; smaller overhangs are clipped
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class _Rows:
    """Rules for the rows of a data set: class names, key point numbers behind a box, and marks of masks by a model."""

    names: Mapping[int, str]
    keypoint_numbers: int
    root: Path
    model_masks: frozenset[str]


def find_yolo(root: Path) -> ShapeData | None:
    """Read the YOLO data set at `root`, a folder or its configuration; None if it is another format.

    Raises:
        DataError: the data set lacks class names or images, or its coordinates are in pixels.
    """
    config = find_yolo_config(root)
    return None if config is None else read_yolo(read_yolo_files(config))


def read_yolo(files: YoloFiles) -> ShapeData:
    """Read all label files of a data set, each once."""
    # gaps between the indices keep a placeholder, so that an index stays the position of its name
    names = tuple(files.names.get(index, f"class_{index}") for index in range(max(files.names, default=-1) + 1))
    root = files.config.parent
    rules = _Rows(dict(enumerate(names)), files.keypoint_numbers, root, read_yolo_marks(root))
    labels = LabelFolders()
    ids = assign_ids(files.base, [path for paths in files.splits.values() for path in paths])
    parsed: dict[Path, DrawnImage] = {}
    splits: dict[str, SplitContent] = {}
    for name in {**files.splits, **files.missing}:
        images = dict.fromkeys(files.splits.get(name, ()))
        splits[name] = SplitContent([], files.missing.get(name, []))
        for image in images:
            if image not in parsed:
                parsed[image] = _read_image(files.base, image, ids[image], labels.find(image), rules)
            splits[name].images.append(parsed[image])
        bare = sum(parsed[image].file == image for image in images)
        if bare:
            text = f"{bare} of {len(images)} images have no label file, they count as images without objects"
            splits[name].problems.append(Problem(files.config, f"split '{name}'", text, "warning"))
    problems = [
        *files.problems,
        *(Problem(file, "labels", "no image has this name", "refused") for file in labels.unused()),
    ]
    data = ShapeData("yolo", files.base, files.config, names, splits, problems, True, files.lists)
    _check_shares(data)
    _note_keypoints(data, rules)
    _note_oriented_boxes(data)
    return data


def _read_image(base: Path, image: Path, image_id: str, file: Path | None, rules: _Rows) -> DrawnImage:
    size = upright_size(image)
    rows = [] if file is None else _read_rows(file)
    objects = tuple(_read_row(f"{image_id}/{number}", row, size, rules) for number, row in rows)
    if rules.model_masks and file is not None and file.is_relative_to(rules.root):
        name = file.relative_to(rules.root).as_posix()
        marks = [yolo_mark(name, row) in rules.model_masks for _, row in rows]
        objects = tuple(replace(item, by_model=mark) for item, mark in zip(objects, marks, strict=True))
    return DrawnImage(image_id, image.relative_to(base).as_posix(), image, size, file or image, objects)


def _read_rows(file: Path) -> list[tuple[int, str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from error
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_row(object_id: str, row: str, size: tuple[int, int], rules: _Rows) -> DrawnObject:
    first, *texts = row.split()
    name, fault = _read_class(first, rules.names)
    shown = row if len(row) <= SHOWN_CHARACTERS else f"{row[:SHOWN_CHARACTERS]}..."
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return DrawnObject(object_id, name, None, fault=f"row '{shown}' holds something that is not a number")
    fault = fault or _find_row_fault(values, shown, rules)
    if fault:
        return DrawnObject(object_id, name, None, fault=fault)
    height, width = size
    if len(values) == 4 or rules.keypoint_numbers:
        x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
        x0, y0, x1, y1 = (to_pixels(edge) for edge in (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        return DrawnObject(object_id, name, (x0, y0, x1, y1), f"'{shown}'")
    polygon = [to_pixels(value, height if place % 2 else width) for place, value in enumerate(values)]
    return DrawnObject(object_id, name, None, f"of the polygon '{shown}'", (polygon,))


def _read_class(text: str, names: Mapping[int, str]) -> tuple[str, str]:
    """Return the class name of an index, and why there is none."""
    try:
        index = int(text) if text.lstrip("+-").isdigit() else int(float(text)) if float(text).is_integer() else -1
    except (ValueError, OverflowError):
        index = -1
    if index in names:
        return names[index], ""
    return text, f"class '{text}' is not an index from 0 to {len(names) - 1}"


def _find_row_fault(values: list[float], shown: str, rules: _Rows) -> str:
    if rules.keypoint_numbers:
        if len(values) not in (4, 4 + rules.keypoint_numbers):
            return f"row '{shown}' has {len(values) + 1} numbers, expected {5 + rules.keypoint_numbers}"
    elif len(values) == 5:
        return f"row '{shown}' has six numbers, as predictions with a confidence have; expected five or a polygon"
    elif len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"row '{shown}' has {len(values) + 1} numbers, expected five, or a class and at least three points"
    if not all(map(math.isfinite, values)):
        return f"row '{shown}' holds a number that is not finite"
    outside = next((value for value in values[: 4 if rules.keypoint_numbers else None] if _is_no_share(value)), None)
    return "" if outside is None else f"coordinate {outside:g} of row '{shown}' is not normalized to 0..1"


def _is_no_share(value: float) -> bool:
    return not MIN_SHARE <= value <= MAX_SHARE


def _check_shares(data: ShapeData) -> None:
    """Raise DataError if most rows hold coordinates that cannot be shares of the image."""
    objects = [item for content in data.splits.values() for image in content.images for item in image.objects]
    pixels = sum("is not normalized" in item.fault for item in objects)
    if pixels > len(objects) / 2:
        raise DataError(
            f"{data.file}: {pixels} of {len(objects)} rows hold coordinates beyond 0..1: they seem to be pixels, "
            "expected values divided by the width and height of the image"
        )


def _note_keypoints(data: ShapeData, rules: _Rows) -> None:
    if rules.keypoint_numbers:
        data.problems.append(Problem(data.file, "kpt_shape", "key points are not used, only boxes", "warning"))


def _note_oriented_boxes(data: ShapeData) -> None:
    """Add a warning if each of several polygons has four points, as the rows of oriented boxes have."""
    objects = [item for content in data.splits.values() for image in content.images for item in image.objects]
    polygons = [polygon for item in objects for polygon in item.polygons]
    if len(polygons) >= 3 and all(len(polygon) == 8 for polygon in polygons):
        text = f"all {len(polygons)} polygons have four points, are they oriented boxes (OBB)? They train as masks"
        data.problems.append(Problem(data.file, "polygons", text, "warning"))
