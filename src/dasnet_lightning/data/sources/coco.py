"""COCO instances files: boxes for all, masks as polygons or run lengths where an annotation has them.

All segmentations are validated while the records are read, none is rasterised before `load_masks`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, Problem
from dasnet_lightning.data.sources.checks import (
    Box,
    Fix,
    RecordsError,
    box_hint,
    check_class_names,
    check_fix,
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

Edges = Mapping[str, Box | None]  # the box of each annotation
RECTANGLES = 0.5  # more masks than this share being their own box means that boxes were exported as polygons


class COCOSource:
    """One COCO instances file with its images.

    image_root: the folder that `file_name` is relative to. class_names: background first; None takes the file's categories
    in the order of their ids. allow_missing: leave out images whose file is missing, and list them. fix: "drop" leaves out
    objects that cannot be used, and lists them. content: the file, where it was read already. `category_ids[label]` is the
    file's own id of a class, for exports. Raises RecordsError (a DataError) with everything that cannot be used otherwise.
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
        self.class_names, labels = _map_categories(file, class_names)
        self.category_ids: Mapping[int, int | str] = {label: key for key, label in labels.items()}
        paths, missing = _locate(file, self.root, allow_missing)
        edges = {str(row["id"]): _edges(row) for row in file.annotations}
        _check_convention(file, edges)
        shapes = _check_shapes(file)
        raw = _read_raw(file, paths, labels, shapes, edges)
        records, problems = read_images(raw, self.class_names, "annotation", fix)
        self.records: tuple[ImageRecord, ...] = tuple(records)
        self.problems: tuple[Problem, ...] = (*_notes(file, self.class_names, shapes, edges), *missing, *problems)
        self._shapes = {key: checked.shape for key, checked in shapes.items() if checked.shape is not None}

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Rasterise the masks of the objects asked for; one that is empty or outside its box is not valid and says why."""
        objects = [record.objects[index] for index in indices]
        planes = pack_shapes([self._shapes[item.object_id] for item in objects], record.size)
        return collect_masks(planes, [item.box for item in objects], [""] * len(objects))

    def polygons(self, object_id: str) -> tuple[np.ndarray, ...]:
        """Return the polygons of an object, each (corners, 2); none if its mask is not made of polygons."""
        shape = self._shapes.get(object_id)
        return () if shape is None else tuple(polygon.reshape(-1, 2) for polygon in shape.polygons)


def _map_categories(file: CocoFile, class_names: Sequence[str] | None) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """The class names (background first), and the label of each of the file's category ids."""
    ordered = sorted(file.categories, key=lambda row: (isinstance(row["id"], str), row["id"]))
    names = tuple(class_names) if class_names is not None else ("background", *(row["name"] for row in ordered))
    label_of = {name: label for label, name in reversed(list(enumerate(names))) if label > 0}
    unknown = [row["name"] for row in ordered if row["name"] not in label_of]
    if unknown:
        raise DataError(f"{file.path}: categories {unknown} are not among the classes {list(names[1:])}, name them all")
    return names, {row["id"]: label_of[row["name"]] for row in ordered}


def _locate(file: CocoFile, root: Path, allow_missing: bool) -> tuple[dict[str, Path], list[Problem]]:
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


def _edges(row: Mapping[str, Any]) -> Box | None:
    """The box of an annotation as edges, None where it is not four numbers."""
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        return None
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height


def _check_convention(file: CocoFile, edges: Edges) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in file.images}
    sized = ((edges[str(row["id"])], sizes[row["image_id"]]) for row in file.annotations)
    hint = box_hint([((x0, y0, x1 - x0, y1 - y0), size) for box, size in sized if box for x0, y0, x1, y1 in (box,)])
    if hint:
        raise DataError(f"{file.path}: {hint}; convert the boxes")


def _check_shapes(file: CocoFile) -> dict[str, CheckedShape]:
    sizes = {image["id"]: (image["height"], image["width"]) for image in file.images}
    return {
        str(row["id"]): check_segmentation(row.get("segmentation"), sizes[row["image_id"]]) for row in file.annotations
    }


def _read_raw(
    file: CocoFile,
    paths: Mapping[str, Path],
    labels: Mapping[int | str, int],
    shapes: Mapping[str, CheckedShape],
    edges: Edges,
) -> list[RawImage]:
    objects: dict[int | str, list[RawObject]] = {image["id"]: [] for image in file.images}
    for row in file.annotations:
        key, checked = str(row["id"]), shapes[str(row["id"])]
        raw = RawObject(
            object_id=key,
            label=labels[row["category_id"]],
            box=edges[key],
            shown=str(row.get("bbox")),
            mask=checked.state,
            ignore=bool(row.get("iscrowd", 0)),
            reason=checked.reason,
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


def _notes(
    file: CocoFile, class_names: Sequence[str], shapes: Mapping[str, CheckedShape], edges: Edges
) -> list[Problem]:
    """What is worth a warning about the file as a whole."""
    notes = check_class_names(file.path, class_names[1:])
    used = {row["category_id"] for row in file.annotations}
    idle = [row["name"] for row in file.categories if row["id"] not in used]
    if idle:
        notes.append(Problem(file.path, "categories", f"without any annotation: {', '.join(idle)}", "warning"))
    drawn = [row for row in file.annotations if shapes[str(row["id"])].state is MaskState.PRESENT]
    boxes = sum(is_rectangle(shapes[str(row["id"])].shape, edges[str(row["id"])]) for row in drawn)
    if boxes >= 3 and boxes > RECTANGLES * len(drawn):
        text = f"{boxes} of {len(drawn)} polygons are just their box: boxes exported as polygons? They train as masks"
        notes.append(Problem(file.path, "segmentations", text, "warning"))
    if any("keypoints" in row for row in file.annotations):
        notes.append(Problem(file.path, "annotations", "key points are not used, only boxes and masks", "warning"))
    return notes
