"""Source of objects that are drawn as shapes, shared by the readers of YOLO, labelme, CVAT and Label Studio files.

A reader turns its files into `DrawnImage`s. `ShapeSource` checks them, maps class names to labels and rasterizes masks on
demand.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dasnet_lightning.data.hashing import hash_parts
from dasnet_lightning.data.packed_masks import unpack_masks
from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, Problem, Source
from dasnet_lightning.data.sources.checks import (
    BACKGROUND,
    Fix,
    RecordsError,
    check_class_names,
    check_fix,
    describe_object,
    describe_renamed,
    rename_class,
)
from dasnet_lightning.data.sources.drawing import DrawnImage, DrawnObject, count_runs, decode_bitmap, extent
from dasnet_lightning.data.sources.masks import (
    CheckedShape,
    MaskShape,
    check_segmentation,
    collect_masks,
    is_rectangle,
    pack_shapes,
)
from dasnet_lightning.data.sources.raw import RawImage, RawObject, read_images
from dasnet_lightning.errors import DataError

MISSING = "its image is missing"  # as read_images says
MAX_RECTANGLES = 0.5  # a larger share of rectangular polygons suggests that boxes were exported as polygons


class ShapeSource(Source):
    """Source of drawn objects.

    Args:
        root: folder of the data set.
        file: file that notes about the whole data set name.
        images: all images with their objects.
        names: class names of the files without background, in the order of their labels.
        class_names: class names to map to, background first. Default: `names`.
        fix: "drop" leaves out objects that cannot be used and reports them as problems.
        problems: what the reader reports beside objects.
        format: name of the format.

    Raises:
        RecordsError: an object cannot be used and `fix` is "error".
        DataError: the coordinates are normalized, or a class of the files is not in `class_names`.
    """

    def __init__(
        self,
        root: Path,
        file: Path,
        images: Sequence[DrawnImage],
        names: Sequence[str],
        *,
        class_names: Sequence[str] | None = None,
        fix: Fix = "error",
        problems: Sequence[Problem] = (),
        format: str = "",
    ) -> None:
        check_fix(fix)
        self.format = format
        self.root = root
        renamed = [rename_class(name) for name in names]
        self.class_names: tuple[str, ...] = (BACKGROUND, *renamed) if class_names is None else tuple(class_names)
        labels = _map_labels(file, renamed, self.class_names)
        self.category_ids: Mapping[int, int | str] = {}
        _check_convention(file, images)
        self._shapes: dict[str, tuple[DrawnObject, MaskShape | None]] = {}
        raw, refused = self._build_raw_images(images, labels)
        records, object_problems = read_images(raw, self.class_names, "object", "drop")
        refused += [problem for problem in object_problems if problem.action == "refused"]
        _raise_refused(refused, fix)
        others = [problem for problem in object_problems if problem.action != "refused"]
        self.records: tuple[ImageRecord, ...] = tuple(records)
        notes = self._describe_classes(file, names, images)
        self.problems: tuple[Problem, ...] = (*problems, *notes, *refused, *others)

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Rasterize the masks of the given objects; one that is empty or outside its box is invalid with a reason."""
        objects = [record.objects[index] for index in indices]
        shapes = [_rasterizable(*self._shapes[item.object_id], record.size) for item in objects]
        return collect_masks(pack_shapes(shapes, record.size), [item.box for item in objects], [""] * len(objects))

    def mask_digest(self, record: ImageRecord) -> str:
        """Return a digest of the polygons and run lengths of an image."""
        drawn = [self._shapes[item.object_id][0] for item in record.objects if item.object_id in self._shapes]
        return hash_parts(sorted(_stored_bytes(item) for item in drawn))

    def _build_raw_images(
        self, images: Sequence[DrawnImage], labels: Mapping[str, int]
    ) -> tuple[list[RawImage], list[Problem]]:
        raw_images, refused = [], []
        for image in images:
            raw_objects = []
            for item in image.objects:
                name = rename_class(item.class_name)
                fault = item.fault or ("" if name in labels else _describe_class_fault(item.class_name))
                if fault:
                    fault = MISSING if image.path is None else fault
                    record = describe_object("object", item.object_id, image.name, item.class_name)
                    refused.append(Problem(image.file, record, fault, "refused"))
                else:
                    raw_objects.append(self._build_raw_object(item, image.size, labels[name]))
            objects = tuple(raw_objects)
            raw_images.append(RawImage(image.image_id, image.name, image.path, image.size, image.file, objects))
        return raw_images, refused

    def _build_raw_object(self, item: DrawnObject, size: tuple[int, int], label: int) -> RawObject:
        checked = _check_shape(item, size)
        if checked.state is MaskState.PRESENT:
            self._shapes[item.object_id] = (item, checked.shape)
        box = item.box if item.box is not None else extent(item.polygons, item.bitmaps)
        shown = item.shown or str([round(value, 2) for value in box or ()])
        return RawObject(item.object_id, label, box, shown, checked.state, item.ignore, checked.reason, item.by_model)

    def _describe_classes(self, file: Path, names: Sequence[str], images: Sequence[DrawnImage]) -> list[Problem]:
        notes = check_class_names(file, names)
        counts = Counter(item.class_name for image in images for item in image.objects)
        unused = [name for name in names if not counts[name]]
        if unused:
            notes.append(Problem(file, "classes", f"without any object: {', '.join(unused)}", "warning"))
        if text := describe_renamed([(name, rename_class(name)) for name in names]):
            notes.append(Problem(file, "classes", text, "warning"))
        drawn = [(shape, item.box) for record in self.records for item in record.objects
                 if item.object_id in self._shapes for shape in (self._shapes[item.object_id][1],)]  # fmt: skip
        rectangles = sum(is_rectangle(shape, box) for shape, box in drawn)
        if rectangles >= 3 and rectangles > MAX_RECTANGLES * len(drawn):
            text = f"{rectangles} of {len(drawn)} masks are just their box: boxes exported as polygons? They train as masks"
            notes.append(Problem(file, "masks", text, "warning"))
        return notes


def _map_labels(file: Path, names: list[str], class_names: Sequence[str]) -> dict[str, int]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{file}: has several classes with the name {repeated}, name each class once")
    known = {name: label for label, name in enumerate(class_names) if label > 0}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"{file}: classes {unknown} are not among the classes {list(class_names[1:])}, name them all")
    return known


def _describe_class_fault(name: str) -> str:
    return f"class '{name}' is not a class of the data set" if name else "has no class name"


def _check_convention(file: Path, images: Sequence[DrawnImage]) -> None:
    """Raise DataError if every box lies within 0..1 although formats of this kind count in pixels."""
    objects = [(item, image.size) for image in images for item in image.objects if not item.fault]
    boxes = [(item.box if item.box is not None else extent(item.polygons), size) for item, size in objects]
    known = [(box, size) for box, size in boxes if box is not None]
    if known and all(max(map(abs, box)) <= 1 and min(size) > 8 for box, size in known):
        raise DataError(f"{file}: all boxes lie within 0..1: they seem normalized, expected pixels; convert them")


def _check_shape(item: DrawnObject, size: tuple[int, int]) -> CheckedShape:
    if item.mask_fault:
        return CheckedShape(MaskState.INVALID, reason=item.mask_fault)
    for bitmap in item.bitmaps:
        bottom, right = bitmap.top + bitmap.height, bitmap.left + bitmap.width
        if min(bitmap.left, bitmap.top) < 0 or bottom > size[0] or right > size[1]:
            return CheckedShape(MaskState.INVALID, reason="the mask reaches out of its image")
    if item.bitmaps and not item.polygons:
        return CheckedShape(MaskState.PRESENT)
    return check_segmentation(list(item.polygons), size)


def _rasterizable(item: DrawnObject, shape: MaskShape | None, size: tuple[int, int]) -> MaskShape:
    """Return the shape of an object; polygons and bitmaps together become the run lengths of their union."""
    if not item.bitmaps:
        assert shape is not None
        return shape
    mask = np.zeros(size, bool) if shape is None else unpack_masks(pack_shapes([shape], size))[0]
    for part in item.bitmaps:
        mask[part.top : part.top + part.height, part.left : part.left + part.width] |= decode_bitmap(part)
    return MaskShape(counts=count_runs(mask.T.ravel()))


def _stored_bytes(item: DrawnObject) -> bytes:
    parts = [np.array(polygon, np.float64).tobytes() for polygon in item.polygons]
    for bitmap in item.bitmaps:
        window = np.array([bitmap.left, bitmap.top, bitmap.width, bitmap.height], np.int64)
        parts += [window.tobytes(), np.asarray(bitmap.runs, np.int64).tobytes()]
    return b"".join(parts)


def _raise_refused(refused: Sequence[Problem], fix: Fix) -> None:
    faults = [problem for problem in refused if problem.message != MISSING]
    if faults and fix == "error":
        raise RecordsError(
            faults, f"{len(faults)} objects cannot be used. Correct the file, or drop them (--fix drop)."
        )
