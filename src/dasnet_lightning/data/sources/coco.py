"""COCO instances files: boxes for all objects, masks as polygons or run lengths for those that have them.

Reading the records validates all segmentations; they are rasterized only in `load_masks`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dasnet_lightning.data.hashing import hash_parts
from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, Problem, Source
from dasnet_lightning.data.sources.checks import (
    Box,
    Fix,
    RecordsError,
    box_hint,
    check_class_names,
    check_fix,
    join_names,
    locate_files,
    unsafe_path,
)
from dasnet_lightning.data.sources.coco_json import CocoFile, read_coco
from dasnet_lightning.data.sources.masks import (
    CheckedShape,
    check_segmentation,
    collect_masks,
    is_rectangle,
    pack_shapes,
)
from dasnet_lightning.data.sources.raw import RawImage, RawObject, read_images
from dasnet_lightning.errors import DataError

BoxById = Mapping[str, Box | None]  # xyxy edges by annotation id; None if unreadable
ShapeById = Mapping[str, CheckedShape]
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
        self.files = (self.annotation_file,)
        file = read_coco(self.annotation_file) if content is None else content
        self.class_names, labels = _map_categories(file, class_names)
        self.category_ids = {label: category_id for category_id, label in labels.items()}
        paths, missing = _locate_images(file, self.root, allow_missing)
        boxes = {str(row["id"]): _parse_box(row) for row in file.annotations}
        _check_box_convention(file, boxes)
        shapes = _check_shapes(file)
        images = _build_raw_images(file, paths, labels, shapes, boxes)
        records, problems = read_images(images, self.class_names, "annotation", fix)
        self.records = tuple(records)
        self.problems = (*_file_warnings(file, self.class_names, shapes, boxes), *missing, *problems)
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


def _map_categories(file: CocoFile, class_names: Sequence[str] | None) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Return the class names (background first) and the label of each of the file's category ids."""
    categories = sorted(file.categories, key=lambda row: (isinstance(row["id"], str), row["id"]))
    names = tuple(class_names) if class_names is not None else ("background", *(row["name"] for row in categories))
    label_of = {name: label for label, name in reversed(list(enumerate(names))) if label > 0}
    unknown = [row["name"] for row in categories if row["name"] not in label_of]
    if unknown:
        raise DataError(f"{file.path}: categories {unknown} are not among the classes {list(names[1:])}, name them all")
    return names, {row["id"]: label_of[row["name"]] for row in categories}


def _locate_images(file: CocoFile, root: Path, allow_missing: bool) -> tuple[dict[str, Path], list[Problem]]:
    paths, faults = locate_files(root, [image["file_name"] for image in file.images])
    problems = [Problem(file.path, f"image '{name}'", reason, "refused") for name, reason in faults.items()]
    unsafe = [problem for problem, name in zip(problems, faults, strict=True) if _is_unsafe(name, faults[name])]
    if unsafe:
        raise RecordsError(unsafe, f"{len(unsafe)} file names are refused; write paths inside {root}.")
    if problems and not allow_missing:
        advice = f"{len(problems)} of {len(file.images)} images are missing; restore them, or allow missing images."
        raise RecordsError(problems, advice)
    return paths, problems


def _is_unsafe(name: str, reason: str) -> bool:
    return bool(unsafe_path(name)) or "link" in reason


def _parse_box(row: Mapping[str, Any]) -> Box | None:
    """Return the box of an annotation as xyxy edges, or None if it is not a list of four numbers."""
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        return None
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height


def _check_box_convention(file: CocoFile, boxes: BoxById) -> None:
    """Raise DataError if all boxes seem to be normalized or xyxy."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in file.images}
    as_written = [
        ((box[0], box[1], box[2] - box[0], box[3] - box[1]), sizes[row["image_id"]])
        for row in file.annotations
        if (box := boxes[str(row["id"])]) is not None
    ]
    hint = box_hint(as_written)
    if hint:
        raise DataError(f"{file.path}: {hint}; convert the boxes")


def _check_shapes(file: CocoFile) -> dict[str, CheckedShape]:
    sizes = {image["id"]: (image["height"], image["width"]) for image in file.images}
    return {
        str(row["id"]): check_segmentation(row.get("segmentation"), sizes[row["image_id"]]) for row in file.annotations
    }


def _build_raw_images(
    file: CocoFile, paths: Mapping[str, Path], labels: Mapping[int | str, int], shapes: ShapeById, boxes: BoxById
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
            reason=shapes[object_id].reason,
        )
        objects[row["image_id"]].append(raw)
    return [
        RawImage(
            image_id=str(image["id"]),
            name=image["file_name"],
            path=paths.get(image["file_name"]),
            size=(image["height"], image["width"]),
            file=file.path,
            objects=tuple(objects[image["id"]]),
        )
        for image in file.images
    ]


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
