"""Label Studio exports (JSON and JSON-MIN): polygons, ellipses and brushes are masks; a rectangle is a box without a mask.

Coordinates are percent of the upright image. Of several annotations of a task, the ground truth or else the first counts.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasnet_lightning.data.images import IMAGE_SUFFIXES, upright_size
from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import MAX_SIDE
from dasnet_lightning.data.sources.coco_json import read_json
from dasnet_lightning.data.sources.drawing import DrawnImage, DrawnObject, ellipse, encode_bitmap, rotate_box, to_pixels
from dasnet_lightning.data.sources.image_index import ImageIndex, index_images
from dasnet_lightning.data.sources.label_studio_rle import decode_brush
from dasnet_lightning.data.sources.shape_data import ShapeData, SplitContent, report_unused, split_name
from dasnet_lightning.errors import DataError

HEAD_BYTES = 65_536
SHAPES = ("rectangle", "polygon", "ellipse", "brush")
LABEL_KEYS = (*(f"{shape}labels" for shape in SHAPES), "labels")


@dataclass(frozen=True, eq=False)
class _Task:
    """One image of an export: the written image name, its regions, and the annotations that are not used."""

    name: str
    image: str
    regions: list[dict[str, Any]]
    unused: int


def find_label_studio(root: Path) -> ShapeData | None:
    """Read the Label Studio export at `root`, a folder or one JSON file; None if it is another format."""
    candidates = [root] if root.is_file() else sorted(root.glob("*.json"))
    files = [path for path in candidates if path.suffix.lower() == ".json" and _is_label_studio(path)]
    return read_label_studio(root if root.is_dir() else root.parent, files) if files else None


def read_label_studio(root: Path, files: Sequence[Path]) -> ShapeData:
    """Read exports below a folder, each once. A file that is named like a split is a split.

    Raises:
        DataError: a file is damaged or not a list of tasks.
    """
    index = index_images(root)
    splits: dict[str, SplitContent] = {}
    for file in files:
        tasks = read_json(file)
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise DataError(f"{file}: is not a list of tasks, export it from Label Studio as JSON again")
        content = splits.setdefault(split_name(file.stem), SplitContent())
        seen: set[Path] = set()
        for number, task in enumerate(tasks):
            _read_task(root, file, number, task, index, content, seen)
    images = [image for content in splits.values() for image in content.images]
    names = {item.class_name for image in images for item in image.objects if item.class_name}
    problems = report_unused(root, index, splits, "are in no task")
    return ShapeData("label_studio", root, files[0], tuple(sorted(names)), splits, problems)


def _is_label_studio(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    tasks = b'"annotations"' in head or b'"completions"' in head
    regions = any(f'"{key}"'.encode() in head for key in LABEL_KEYS[:-1])
    return head.lstrip().startswith(b"[") and (regions or (tasks and b'"data"' in head))


def _read_task(
    root: Path,
    file: Path,
    number: int,
    value: dict[str, Any],
    index: ImageIndex,
    content: SplitContent,
    seen: set[Path],
) -> None:
    record = f"task {value.get('id', number)}"
    task = _open_task(record, value)
    if not task.image:
        content.problems.append(Problem(file, record, "names no image, expected a file name in its 'data'", "refused"))
        return
    path, reason = index.find(task.image)
    if not content.take(file, record if path else f"image '{task.image}'", path, reason, seen):
        return
    size = _size_of(task.regions) or (upright_size(path) if path else (1, 1))
    image_id = path.relative_to(root).with_suffix("").as_posix() if path else task.name
    shapes, ignored = _join_regions(task.regions)
    objects = tuple(_read_region(f"{image_id}/{place}", region, size) for place, region in enumerate(shapes))
    if ignored:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
        content.problems.append(Problem(file, record, f"{counts} not used, only boxes and masks", "warning"))
    if task.unused:
        text = f"{task.unused} more annotations of the same image are not used"
        content.problems.append(Problem(file, record, text, "warning"))
    name = path.relative_to(root).as_posix() if path else task.image
    content.images.append(DrawnImage(image_id, name, path, size, file, objects))


def _open_task(record: str, value: dict[str, Any]) -> _Task:
    """Return the image and the regions of a task of a JSON or a JSON-MIN export."""
    annotations = value.get("annotations", value.get("completions"))
    if not isinstance(annotations, list):
        regions = [region for regions in value.values() if isinstance(regions, list) for region in _tables(regions)]
        minimal = [{"type": _kind_of(region), "value": region, **region} for region in regions if _kind_of(region)]
        return _Task(record, _image_of(value), minimal, 0)
    usable = [item for item in _tables(annotations) if not item.get("was_cancelled")]
    usable.sort(key=lambda item: not item.get("ground_truth"))
    result = usable[0].get("result") if usable else []
    data = value.get("data")
    image = _image_of(data if isinstance(data, dict) else value) or str(value.get("file_upload") or "")
    return _Task(record, image, list(_tables(result)), max(0, len(usable) - 1))


def _tables(values: Any) -> Iterator[dict[str, Any]]:
    yield from (value for value in (values if isinstance(values, list) else ()) if isinstance(value, dict))


def _kind_of(region: dict[str, Any]) -> str:
    return next((key for key in LABEL_KEYS if key in region), "")


def _image_of(data: dict[str, Any]) -> str:
    """Return the text that names the image: that of a usual key, or the only one that looks like an image file."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    usual = next((texts[key] for key in ("image", "img", "url", "ocr") if key in texts), "")
    like = [text for text in texts.values() if text.split("?")[0].lower().endswith(IMAGE_SUFFIXES) or "?d=" in text]
    return usual or (like[0] if like else "")


def _size_of(regions: Iterable[dict[str, Any]]) -> tuple[int, int] | None:
    for region in regions:
        size = (region.get("original_height"), region.get("original_width"))
        if all(type(side) is int and 0 < side <= MAX_SIDE for side in size):
            return size  # type: ignore[return-value]
    return None


def _join_regions(regions: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Join results of one id, such as a shape and its labels; return the shapes and the counts of other results."""
    joined: dict[str, dict[str, Any]] = {}
    ignored: Counter[str] = Counter()
    for number, region in enumerate(regions):
        value = region.get("value")
        kind = str(region.get("type") or "")
        if not isinstance(value, dict) or kind.removesuffix("labels") not in (*SHAPES, ""):
            ignored[kind or "result without a value"] += 1
            continue
        entry = joined.setdefault(str(region.get("id") or number), {"labels": []})
        entry["labels"] = entry["labels"] or next((value[key] for key in LABEL_KEYS if key in value), [])
        entry.update({key: item for key, item in value.items() if key not in LABEL_KEYS})
    shapes = []
    for entry in joined.values():
        if any(key in entry for key in ("rle", "points", "radiusX", "width")):
            shapes.append(entry)
        else:
            ignored["labels without a shape"] += 1
    return shapes, ignored


def _read_region(object_id: str, region: dict[str, Any], size: tuple[int, int]) -> DrawnObject:
    labels = region["labels"] if isinstance(region["labels"], list) else [region["labels"]]
    name = str(labels[0]).strip() if labels else ""
    if len(labels) > 1:
        return DrawnObject(object_id, name, None, fault=f"has the labels {', '.join(map(str, labels))}, expected one")
    try:
        return _read_shape(object_id, name, region, size)
    except (KeyError, TypeError, ValueError) as error:
        missing = f"has no {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        return DrawnObject(object_id, name, None, fault=missing)


def _read_shape(object_id: str, name: str, region: dict[str, Any], size: tuple[int, int]) -> DrawnObject:
    """Read the geometry of a region. Raises KeyError, TypeError or ValueError if it cannot be read."""
    per_y, per_x = size[0] / 100, size[1] / 100
    if "rle" in region:
        mask = decode_brush(region["rle"], size)
        if not mask.any():
            raise ValueError("the brush mask is empty")
        return DrawnObject(object_id, name, None, "of the brush mask", bitmaps=(encode_bitmap(mask),))
    if "points" in region:
        polygon = [
            to_pixels(float(value), scale) for x, y in region["points"] for value, scale in ((x, per_x), (y, per_y))
        ]
        shown = f"of the polygon with {len(polygon) // 2} points"
        return DrawnObject(object_id, name, None, shown, (polygon,))
    x, y, turn = (
        to_pixels(float(region["x"]), per_x),
        to_pixels(float(region["y"]), per_y),
        float(region.get("rotation") or 0),
    )
    if "radiusX" in region:
        radii = (float(region["radiusX"]) * per_x, float(region["radiusY"]) * per_y)
        return DrawnObject(object_id, name, None, "of the ellipse", (ellipse((x, y), radii, turn),))
    width, height = float(region["width"]) * per_x, float(region["height"]) * per_y
    box = (x, y, to_pixels(x + width), to_pixels(y + height))
    return DrawnObject(object_id, name, rotate_box(box, (x, y), turn) if turn else box)
