"""Several data sets as one source: an image that is in several parts counts once.

VOC 2007, VOC 2012 and SBD name photographs by the same ids, so an id says that two images are one; in other parts it is
the file. Boxes come from the first part whose boxes are drawn, not derived from masks; masks from the first part that has
any, and belong to the boxes of the same class that they overlap most.

One image that several data sets describe: whose boxes and whose masks count, and which mask belongs to which box.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import relpath
from pathlib import Path

from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, ObjectRecord, Problem
from dasnet_lightning.data.sources.checks import Box, Fix, RecordsError
from dasnet_lightning.data.sources.union_parts import Part, needs_voc_classes, open_parts
from dasnet_lightning.data.sources.union_yaml import UnionSpec
from dasnet_lightning.data.sources.voc_xml import VOC_CLASSES
from dasnet_lightning.errors import DataError

LISTED = 20


Group = list[tuple[Part, ImageRecord]]  # the records of one image, in the order of the parts


MIN_IOU = 0.5  # of a box and the box of a mask, to belong together


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the masks of an image are opened: object i of the union is object `places[i]` of that part's record."""

    part: Part
    record: ImageRecord
    places: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class Merged:
    """An image of the union; `unused` counts the masks that belong to no box, `bare` the boxes that got no mask."""

    record: ImageRecord
    origin: Origin | None
    unused: int = 0
    bare: int = 0


class UnionSource:
    """The images of several parts, in their order.

    file: the list of the parts, for messages. root: the folder that image ids of parts without shared ids are relative to.
    excluded: ids that are left out, and counted. Raises DataError where the parts have different classes, RecordsError
    where images of one id have different sizes.
    """

    def __init__(self, parts: Sequence[Part], file: Path, root: Path, excluded: Collection[str] = ()) -> None:
        self.root = root
        self.class_names = _agreed_classes(file, parts)
        self.category_ids: Mapping[int, int | str] = _agreed_ids(parts)
        groups = _group(parts, root)
        left_out = [image_id for image_id in groups if image_id in excluded]
        kept = {image_id: group for image_id, group in groups.items() if image_id not in excluded}
        _check_sizes(file, kept)
        merged = {image_id: merge_records(image_id, group) for image_id, group in kept.items()}
        self.records: tuple[ImageRecord, ...] = tuple(item.record for item in merged.values())
        self._origins = {image_id: item.origin for image_id, item in merged.items() if item.origin is not None}
        self.problems: tuple[Problem, ...] = (
            *_notes(file, kept, list(merged.values()), left_out),
            *_unique(problem for part in parts for problem in (*part.problems, *part.source.problems)),
        )

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Open masks through the part that they come from."""
        origin = self._origins[record.image_id]
        return origin.part.source.load_masks(origin.record, [origin.places[index] for index in indices])


def open_union(
    spec: UnionSpec, allow_missing: bool, fix: Fix
) -> tuple[UnionSource, UnionSource | None, tuple[Problem, ...]]:
    """Train, val (None where no part is listed) and what is to say about both.

    Raises DataError where a split has not as many images as the file expects and `allow_missing` is not set.
    """
    names = VOC_CLASSES if needs_voc_classes((*spec.train, *spec.val)) else None
    train_parts = open_parts(spec.train, names, allow_missing, fix)
    val_parts = open_parts(spec.val, train_parts[0].source.class_names, allow_missing, fix)
    val = UnionSource(val_parts, spec.file, spec.root) if val_parts else None
    known = () if val is None or spec.keep_val_images else {record.image_id for record in val.records}
    train = UnionSource(train_parts, spec.file, spec.root, known)
    faults = [
        Problem(spec.file, name, f"{len(source.records):,} images are there, expected {spec.expect[name]:,}", "refused")
        for name, source in (("train", train), ("val", val))
        if source is not None and len(source.records) != spec.expect.get(name, len(source.records))
    ]
    if faults and not allow_missing:
        raise RecordsError(
            faults, "Complete the data sets, allow missing images, or correct 'expect' for a part of them."
        )
    return train, val, tuple(faults)


def _agreed_classes(file: Path, parts: Sequence[Part]) -> tuple[str, ...]:
    names = parts[0].source.class_names
    for part in parts[1:]:
        if part.source.class_names != names:
            different = sorted(set(part.source.class_names) ^ set(names))
            raise DataError(f"{file}: {part.source.root} has other classes than {parts[0].source.root}: {different}")
    return names


def _agreed_ids(parts: Sequence[Part]) -> dict[int, int | str]:
    """The data sets' own ids of the labels, where all parts have the same."""
    ids = dict(parts[0].source.category_ids)
    return ids if all(dict(part.source.category_ids) == ids for part in parts) else {}


def _group(parts: Sequence[Part], root: Path) -> dict[str, Group]:
    """The records of each image, in the order of the parts."""
    groups: dict[str, Group] = {}
    for part in parts:
        name = _namer(part, root)
        for record in part.source.records:
            groups.setdefault(name(record), []).append((part, record))
    return groups


def _namer(part: Part, root: Path) -> Callable[[ImageRecord], str]:
    if part.shares_ids:
        return lambda record: record.image_id
    folders: dict[Path, str] = {}  # a path is made relative once for each folder, not for each of its images

    def name(record: ImageRecord) -> str:
        folder = record.path.parent
        if folder not in folders:
            folders[folder] = Path(relpath(folder, root)).as_posix()
        return f"{folders[folder]}/{record.path.name}"

    return name


def _check_sizes(file: Path, groups: Mapping[str, Group]) -> None:
    faults = [
        Problem(file, f"image '{image_id}'", f"{_show(group[0])}, but {_show(other)}", "refused")
        for image_id, group in groups.items()
        for other in group[1:]
        if other[1].size != group[0][1].size
    ]
    if faults:
        advice = f"{len(faults)} images have one id but are not the same; rename them, or list one of the data sets."
        raise RecordsError(faults, advice)


def _show(entry: tuple[Part, ImageRecord]) -> str:
    record = entry[1]
    return f"{record.path} has {record.size[1]}x{record.size[0]} pixels"


def _notes(file: Path, groups: Mapping[str, Group], merged: Sequence[Merged], left_out: Sequence[str]) -> list[Problem]:
    """What the merging did, counted."""
    shared = sum(len(group) > 1 for group in groups.values())
    unused, bare = sum(item.unused for item in merged), sum(item.bare for item in merged)
    shown = ", ".join(left_out[:LISTED]) + (f" and {len(left_out) - LISTED} more" if len(left_out) > LISTED else "")
    texts = (
        (len(left_out), "images", f"are in the validation and left out of the training: {shown}"),
        (shared, "images", "are in several parts and count once"),
        (unused, "masks", f"overlap no box of their class (IoU {MIN_IOU}) and are not used"),
        (bare, "boxes", "got no mask although their image has some"),
    )
    return [Problem(file, what, f"{count} {text}", "warning") for count, what, text in texts if count]


def _unique(problems: Iterable[Problem]) -> list[Problem]:
    """Each problem once: parts may read the same files."""
    return list({(problem.file, problem.record, problem.message): problem for problem in problems}.values())


def merge_records(image_id: str, group: Group) -> Merged:
    """One record of all: boxes of the first part that draws them, masks of the first part that has and may use them."""
    part, record = next((entry for entry in group if not entry[0].derived_boxes), group[0])
    found = next((entry for entry in group if entry[0].use_masks and entry[1].has_masks), None)
    if found is None:
        objects = tuple(_without_mask(item) if item.mask is MaskState.PRESENT else item for item in record.objects)
        return Merged(replace(record, image_id=image_id, objects=objects), None)
    if found[1] is record:
        places = {index: index for index in range(len(record.objects))}
        return Merged(replace(record, image_id=image_id), Origin(part, record, places))
    places = match_objects(record.objects, found[1].objects)
    objects = tuple(
        replace(item, mask=MaskState.PRESENT, reason="") if index in places else _without_mask(item)
        for index, item in enumerate(record.objects)
    )
    drawn = sum(item.mask is MaskState.PRESENT for item in found[1].objects)
    merged = replace(record, image_id=image_id, objects=objects)
    return Merged(merged, Origin(*found, places), drawn - len(places), len(objects) - len(places))


def match_objects(objects: Sequence[ObjectRecord], masks: Sequence[ObjectRecord]) -> dict[int, int]:
    """Which of `masks` belongs to which of `objects`: of the same class, pairs of the largest IoU first, each used once."""
    pairs = [
        (box_iou(item.box, other.box), i, j)
        for i, item in enumerate(objects)
        for j, other in enumerate(masks)
        if item.label == other.label and other.mask is MaskState.PRESENT
    ]
    found: dict[int, int] = {}
    taken: set[int] = set()
    for iou, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if iou >= MIN_IOU and i not in found and j not in taken:
            found[i] = j
            taken.add(j)
    return found


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (xyxy)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def _without_mask(item: ObjectRecord) -> ObjectRecord:
    return replace(item, mask=MaskState.ABSENT, reason="")
