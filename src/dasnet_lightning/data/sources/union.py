"""Union of several data sets as one source, in which an image of several parts counts once.

VOC 2007, VOC 2012 and SBD name photographs by the same ids, so equal ids mean the same image; in other parts the file
identifies the image. Boxes come from the first part whose boxes are drawn, not derived from masks. Masks come from the
first part that has any. Each mask belongs to the box of the same class that it overlaps most.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import relpath
from pathlib import Path

from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, ObjectRecord, Problem, Source
from dasnet_lightning.data.sources.checks import Box, Fix, RecordsError, join_names
from dasnet_lightning.data.sources.union_parts import Part, common_voc_classes, needs_voc_classes, open_parts
from dasnet_lightning.data.sources.union_yaml import UnionSpec
from dasnet_lightning.data.sources.voc_xml import VOC_CLASSES
from dasnet_lightning.errors import DataError

MIN_IOU = 0.5  # between an object's box and the box of its mask

PartRecords = list[tuple[Part, ImageRecord]]  # records of one image, in the order of the parts


@dataclass(frozen=True, eq=False)
class MaskOrigin:
    """Where the masks of an image of the union are opened.

    Attributes:
        part: the part that has them.
        record: the image in that part.
        indices: index of the object in `record` by index of the object in the union.
    """

    part: Part
    record: ImageRecord
    indices: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class MergedImage:
    """One image of the union.

    Attributes:
        record: the merged record.
        origin: where its masks are opened; None if it has none.
        unused_masks: number of masks that belong to no box.
        boxes_without_mask: number of boxes that got no mask although the image has masks.
    """

    record: ImageRecord
    origin: MaskOrigin | None
    unused_masks: int = 0
    boxes_without_mask: int = 0


class UnionSource(Source):
    """Images of several parts, in the order of the parts.

    Args:
        parts: opened parts of the same classes.
        file: the YAML list of the parts, for messages.
        root: folder that the image ids of parts without shared ids are relative to.
        excluded: ids to leave out; they are counted in a warning.

    Raises:
        DataError: the parts have different classes.
        RecordsError: images with the same id have different sizes.
    """

    def __init__(self, parts: Sequence[Part], file: Path, root: Path, excluded: Collection[str] = ()) -> None:
        self.root = root
        self.files = (file, *(used for part in parts for used in part.source.files))
        self.class_names = _common_class_names(file, parts)
        self.category_ids = _common_category_ids(parts)
        groups = _group_by_image(parts, root)
        left_out = [image_id for image_id in groups if image_id in excluded]
        kept = {image_id: group for image_id, group in groups.items() if image_id not in excluded}
        _check_sizes(file, kept)
        merged = {image_id: merge_records(image_id, group) for image_id, group in kept.items()}
        self.records = tuple(item.record for item in merged.values())
        self._origins = {image_id: item.origin for image_id, item in merged.items() if item.origin is not None}
        self.problems = (
            *_merge_warnings(file, kept, list(merged.values()), left_out),
            *_without_duplicates(problem for part in parts for problem in (*part.problems, *part.source.problems)),
        )

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Open masks through the part that has them."""
        origin = self._origins[record.image_id]
        return origin.part.source.load_masks(origin.record, [origin.indices[index] for index in indices])

    def mask_digest(self, record: ImageRecord) -> str | None:
        """Return the digest of the part that has the masks; empty if no part has any."""
        origin = self._origins.get(record.image_id)
        return "" if origin is None else origin.part.source.mask_digest(origin.record)


def open_union(
    spec: UnionSpec, allow_missing: bool, fix: Fix
) -> tuple[UnionSource, UnionSource | None, tuple[Problem, ...]]:
    """Open the parts of a union.

    Returns:
        The training split, the validation split (None if no part is listed for it), and problems of both.

    Raises:
        DataError: a part cannot be opened, or a split has another number of images than expected and `allow_missing` is
            not set.
    """
    specs = (*spec.train, *spec.val)
    names = VOC_CLASSES if needs_voc_classes(specs) else common_voc_classes(specs)
    train_parts = open_parts(spec.train, names, allow_missing, fix)
    val_parts = open_parts(spec.val, train_parts[0].source.class_names, allow_missing, fix)
    val = UnionSource(val_parts, spec.file, spec.root) if val_parts else None
    excluded = () if val is None or spec.keep_val_images else {record.image_id for record in val.records}
    train = UnionSource(train_parts, spec.file, spec.root, excluded)
    faults = [
        Problem(spec.file, name, f"has {len(source.records):,} images, expected {spec.expect[name]:,}", "refused")
        for name, source in (("train", train), ("val", val))
        if source is not None and len(source.records) != spec.expect.get(name, len(source.records))
    ]
    if faults and not allow_missing:
        raise RecordsError(
            faults, "Complete the data sets, allow missing images, or correct 'expect' if you use only some of them."
        )
    return train, val, tuple(faults)


def merge_records(image_id: str, group: PartRecords) -> MergedImage:
    """Merge the records of one image.

    Boxes come from the first part that draws them, masks from the first part that has masks and may use them.
    """
    part, record = next((entry for entry in group if not entry[0].derived_boxes), group[0])
    mask_entry = next((entry for entry in group if entry[0].use_masks and entry[1].has_masks), None)
    if mask_entry is None:
        objects = tuple(_without_mask(item) if item.mask is MaskState.PRESENT else item for item in record.objects)
        return MergedImage(replace(record, image_id=image_id, objects=objects), None)
    mask_part, mask_record = mask_entry
    if mask_record is record:
        indices = {index: index for index in range(len(record.objects))}
        return MergedImage(replace(record, image_id=image_id), MaskOrigin(part, record, indices))
    indices = match_objects(record.objects, mask_record.objects)
    objects = tuple(
        replace(item, mask=MaskState.PRESENT, reason="") if index in indices else _without_mask(item)
        for index, item in enumerate(record.objects)
    )
    masks = sum(item.mask is MaskState.PRESENT for item in mask_record.objects)
    return MergedImage(
        record=replace(record, image_id=image_id, objects=objects),
        origin=MaskOrigin(mask_part, mask_record, indices),
        unused_masks=masks - len(indices),
        boxes_without_mask=len(objects) - len(indices),
    )


def match_objects(objects: Sequence[ObjectRecord], masked: Sequence[ObjectRecord]) -> dict[int, int]:
    """Match objects to masked objects of the same class, largest IoU first, each used at most once.

    Returns:
        Index into `masked` by index into `objects`.
    """
    pairs = [
        (box_iou(item.box, other.box), i, j)
        for i, item in enumerate(objects)
        for j, other in enumerate(masked)
        if item.label == other.label and other.mask is MaskState.PRESENT
    ]
    matches: dict[int, int] = {}
    used: set[int] = set()
    for iou, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if iou >= MIN_IOU and i not in matches and j not in used:
            matches[i] = j
            used.add(j)
    return matches


def box_iou(first: Box, second: Box) -> float:
    """Return the intersection over union of two boxes (xyxy)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def _without_mask(item: ObjectRecord) -> ObjectRecord:
    return replace(item, mask=MaskState.ABSENT, reason="")


def _common_class_names(file: Path, parts: Sequence[Part]) -> tuple[str, ...]:
    first = parts[0].source
    for part in parts[1:]:
        if part.source.class_names != first.class_names:
            different = sorted(set(part.source.class_names) ^ set(first.class_names))
            raise DataError(
                f"{file}: {part.source.root} has other classes than {first.root}: {different}; "
                "list only data sets with the same classes"
            )
    return first.class_names


def _common_category_ids(parts: Sequence[Part]) -> Mapping[int, int | str]:
    """Return the data sets' own ids of the labels if all parts have the same, else nothing."""
    ids = parts[0].source.category_ids
    return ids if all(dict(part.source.category_ids) == dict(ids) for part in parts) else {}


def _group_by_image(parts: Sequence[Part], root: Path) -> dict[str, PartRecords]:
    """Group the records of all parts by image id, in the order of the parts."""
    groups: dict[str, PartRecords] = {}
    for part in parts:
        union_id = _union_id_function(part, root)
        for record in part.source.records:
            groups.setdefault(union_id(record), []).append((part, record))
    return groups


def _union_id_function(part: Part, root: Path) -> Callable[[ImageRecord], str]:
    """Return the function that maps a part's record to its image id in the union."""
    if part.shares_ids:
        return lambda record: record.image_id
    folders: dict[Path, str] = {}  # relpath is slow: once per folder, not per image

    def relative_path(record: ImageRecord) -> str:
        folder = record.path.parent
        if folder not in folders:
            folders[folder] = Path(relpath(folder, root)).as_posix()
        return f"{folders[folder]}/{record.path.name}"

    return relative_path


def _check_sizes(file: Path, groups: Mapping[str, PartRecords]) -> None:
    faults = [
        Problem(file, f"image '{image_id}'", f"{_describe_size(group[0][1])}, but {_describe_size(record)}", "refused")
        for image_id, group in groups.items()
        for _, record in group[1:]
        if record.size != group[0][1].size
    ]
    if faults:
        advice = f"{len(faults)} image ids mean different images; rename them, or list only one of the data sets."
        raise RecordsError(faults, advice)


def _describe_size(record: ImageRecord) -> str:
    return f"{record.path} has {record.size[1]}x{record.size[0]} pixels"


def _merge_warnings(
    file: Path, groups: Mapping[str, PartRecords], merged: Sequence[MergedImage], left_out: Sequence[str]
) -> list[Problem]:
    """Return warnings that count what the merge did."""
    shared = sum(len(group) > 1 for group in groups.values())
    unused = sum(item.unused_masks for item in merged)
    without_mask = sum(item.boxes_without_mask for item in merged)
    counts = (
        (len(left_out), "images", f"are in the validation split and left out of training: {join_names(left_out)}"),
        (shared, "images", "are in several parts and count once"),
        (unused, "masks", f"overlap no box of their class (IoU {MIN_IOU}) and are not used"),
        (without_mask, "boxes", "got no mask although their image has some"),
    )
    return [Problem(file, record, f"{count} {text}", "warning") for count, record, text in counts if count]


def _without_duplicates(problems: Iterable[Problem]) -> list[Problem]:
    """Keep each problem once, because several parts may read the same files."""
    return list({(problem.file, problem.record, problem.message): problem for problem in problems}.values())
