"""COCO instances files: boxes for all objects, masks as polygons or run lengths for those that have them.

Reading the records validates all segmentations; they are rasterized only in `load_masks`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dasnet_lightning.data.hashing import hash_parts
from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, Problem, Source
from dasnet_lightning.data.sources.box_convention import XYWH, find_other_convention, written_boxes
from dasnet_lightning.data.sources.checks import (
    Box,
    Fix,
    check_class_names,
    check_fix,
    join_names,
)
from dasnet_lightning.data.sources.coco_images import ImageFiles, locate_images
from dasnet_lightning.data.sources.coco_json import CocoFile, read_coco
from dasnet_lightning.data.sources.coco_values import Conversions, is_missing_box, to_box, to_segmentation
from dasnet_lightning.data.sources.masks import (
    CheckedShape,
    check_segmentation,
    collect_masks,
    find_extent,
    is_rectangle,
    pack_shapes,
)
from dasnet_lightning.data.sources.model_masks import is_model_row
from dasnet_lightning.data.sources.raw import RawImage, RawObject, read_images
from dasnet_lightning.errors import DataError

BoxById = Mapping[str, Box | None]  # xyxy edges by annotation id; None if unreadable
ShapeById = Mapping[str, CheckedShape]
MAX_OUTLINES = 2000  # masks that are compared with their boxes to find the convention of the boxes
MAX_RECTANGLES = 0.5  # a larger share of masks equal to their boxes means that boxes were exported as polygons


class COCOSource(Source):
    """One COCO instances file with its images.

    Args:
        annotation_file: the JSON file.
        image_root: the folder that `file_name` is relative to.
        class_names: names by label, background first; None takes the file's categories in the order of their ids.
        allow_missing: leave out images whose file is missing and report them as problems.
        fix: "drop" leaves out objects that cannot be used and reports them as problems.
        content: the parsed file, if it was read before.

    Raises:
        RecordsError: lists everything that cannot be used and that no option accepts.
    """

    def __init__(
        self,
        annotation_file: Path,
        image_root: Path,
        *,
        class_names: Sequence[str] | None = None,
        allow_missing: bool = False,
        fix: Fix = "error",
        content: CocoFile | None = None,
    ) -> None:
        check_fix(fix)
        self.root = Path(image_root)
        self.annotation_file = Path(annotation_file)
        file = read_coco(self.annotation_file) if content is None else content
        self.files = file.files or (self.annotation_file,)
        self.class_names, labels = _map_categories(file, class_names)
        self.category_ids = {label: category_id for category_id, label in labels.items()}
        files = locate_images(file, self.root, allow_missing)
        conversions = Conversions()
        shapes = _check_shapes(file, files, conversions)
        boxes = _read_boxes(file, files, shapes, conversions)
        images = _build_raw_images(file, files, labels, shapes, boxes)
        records, problems = read_images(images, self.class_names, "annotation", fix)
        self.records = tuple(records)
        warnings = _file_warnings(file, self.class_names, shapes, boxes)
        notes = (*file.notes, *files.notes, *conversions.problems(file.path))
        self.problems = (*notes, *warnings, *files.missing, *problems)
        self._shapes = {key: checked.shape for key, checked in shapes.items() if checked.shape is not None}

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Rasterize the masks of the requested objects; one that is empty or outside its box is not valid."""
        objects = [record.objects[index] for index in indices]
        packed = pack_shapes([self._shapes[item.object_id] for item in objects], record.size)
        return collect_masks(packed, [item.box for item in objects], [""] * len(objects))

    def mask_digest(self, record: ImageRecord) -> str:
        """Return a digest of the polygons and run lengths of an image."""
        shapes = [self._shapes[item.object_id] for item in record.objects if item.object_id in self._shapes]
        contents = [(*shape.polygons, *(() if shape.counts is None else (shape.counts,))) for shape in shapes]
        return hash_parts(sorted(b"".join(array.tobytes() for array in arrays) for arrays in contents))

    def polygons(self, object_id: str) -> tuple[np.ndarray, ...]:
        """Return the polygons of an object, each (corners, 2); none if its mask is not made of polygons."""
        shape = self._shapes.get(object_id)
        return () if shape is None else tuple(polygon.reshape(-1, 2) for polygon in shape.polygons)


def _map_categories(file: CocoFile, class_names: Sequence[str] | None) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Return the class names (background first) and the label of each of the file's category ids."""
    categories = sorted(file.categories, key=lambda row: (isinstance(row["id"], str), row["id"]))
    names = tuple(class_names) if class_names is not None else ("background", *(row["name"] for row in categories))
    label_of = {name: label for label, name in reversed(list(enumerate(names))) if label > 0}
    unknown = [row["name"] for row in categories if row["name"] not in label_of]
    if unknown:
        raise DataError(f"{file.path}: categories {unknown} are not among the classes {list(names[1:])}, name them all")
    return names, {row["id"]: label_of[row["name"]] for row in categories}


def _check_shapes(file: CocoFile, files: ImageFiles, conversions: Conversions) -> dict[str, CheckedShape]:
    shapes = {}
    for row in file.annotations:
        value, description = to_segmentation(row.get("segmentation"))
        if description:
            conversions.count("segmentations", description)
        shapes[str(row["id"])] = check_segmentation(value, files.sizes[row["image_id"]])
    return shapes


def _read_boxes(
    file: CocoFile, files: ImageFiles, shapes: ShapeById, conversions: Conversions
) -> dict[str, Box | None]:
    """Return the boxes as xyxy edges, or None if they cannot be read. A missing box is the extent of the mask.

    Raises DataError if the boxes follow another convention than COCO's.
    """
    boxes: dict[str, Box | None] = {}
    for row in file.annotations:
        numbers, from_text = to_box(row.get("bbox"))
        if from_text:
            conversions.count("annotations", "boxes with numbers as text were read")
        boxes[str(row["id"])] = None if numbers is None else _to_edges(numbers)
    _check_box_convention(file, files, boxes, shapes)
    for row in file.annotations:
        shape = shapes[str(row["id"])].shape
        if is_missing_box(row.get("bbox")) and shape is not None:
            boxes[str(row["id"])] = find_extent(shape, files.sizes[row["image_id"]])
            conversions.count("annotations", "annotations have no box and got the extent of their mask")
    return boxes


def _to_edges(numbers: Sequence[float]) -> Box:
    x, y, width, height = map(float, numbers)
    return x, y, x + width, y + height


def _check_box_convention(file: CocoFile, files: ImageFiles, boxes: BoxById, shapes: ShapeById) -> None:
    """Raise DataError if most boxes follow another convention."""
    rows = [
        row
        for row in file.annotations
        if boxes[str(row["id"])] is not None
        and not is_missing_box(row["bbox"])
        and row["image_id"] in files.known_sizes
    ]
    step = -(-len(rows) // MAX_OUTLINES) or 1
    outlines: list[Box | None] = [None] * len(rows)
    for number, row in list(enumerate(rows))[::step]:
        shape = shapes[str(row["id"])].shape
        outlines[number] = None if shape is None or not shape.polygons else find_extent(shape, (0, 0))
    edges = [box for row in rows if (box := boxes[str(row["id"])]) is not None]
    written = written_boxes(
        [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in edges],
        [files.sizes[row["image_id"]] for row in rows],
        outlines,
        [row["area"] if type(row.get("area")) in (int, float) else None for row in rows],
    )
    hint = find_other_convention(written, XYWH)
    if hint:
        raise DataError(f"{file.path}: {hint}; convert the boxes")


def _build_raw_images(
    file: CocoFile, files: ImageFiles, labels: Mapping[int | str, int], shapes: ShapeById, boxes: BoxById
) -> list[RawImage]:
    objects: dict[int | str, list[RawObject]] = {image["id"]: [] for image in file.images}
    for row in file.annotations:
        object_id = str(row["id"])
        raw = RawObject(
            object_id=object_id,
            label=labels[row["category_id"]],
            box=boxes[object_id],
            shown=str(row.get("bbox")),
            mask=shapes[object_id].state,
            ignore=bool(row.get("iscrowd", 0)),
            reason=shapes[object_id].reason if boxes[object_id] is not None else _describe_unreadable_box(row),
            by_model=is_model_row(row),
        )
        objects[row["image_id"]].append(raw)
    return [
        RawImage(
            image_id=str(image["id"]),
            name=image["file_name"],
            path=files.paths.get(image["file_name"]),
            size=files.sizes[image["id"]],
            file=file.path,
            objects=tuple(objects[image["id"]]),
        )
        for image in file.images
    ]


def _describe_unreadable_box(row: Mapping[str, Any]) -> str:
    box = row.get("bbox")
    if is_missing_box(box):
        return f"box {box} is missing or not a list of four numbers, and no mask shows its extent"
    rotated = ", five may be a rotated box" if isinstance(box, list) and len(box) == 5 else ""
    return f"box {box} is not a list of four numbers{rotated}"


def _file_warnings(file: CocoFile, class_names: Sequence[str], shapes: ShapeById, boxes: BoxById) -> list[Problem]:
    """Return warnings about the file as a whole."""
    warnings = check_class_names(file.path, class_names[1:])
    used = {row["category_id"] for row in file.annotations}
    unused = [row["name"] for row in file.categories if row["id"] not in used]
    if unused:
        warnings.append(Problem(file.path, "categories", f"without any annotation: {join_names(unused)}", "warning"))
    masked = [str(row["id"]) for row in file.annotations if shapes[str(row["id"])].state is MaskState.PRESENT]
    rectangles = sum(is_rectangle(shapes[object_id].shape, boxes[object_id]) for object_id in masked)
    if rectangles >= 3 and rectangles > MAX_RECTANGLES * len(masked):
        text = (
            f"{rectangles} of {len(masked)} polygons are just the rectangle of their box, were boxes exported as "
            "polygons? They train as masks; remove them if they are not"
        )
        warnings.append(Problem(file.path, "segmentations", text, "warning"))
    if any("keypoints" in row for row in file.annotations):
        warnings.append(Problem(file.path, "annotations", "keypoints are not used, only boxes and masks", "warning"))
    return warnings
