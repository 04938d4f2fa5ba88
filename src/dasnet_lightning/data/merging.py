"""One image that several data sets describe: whose boxes and whose masks count, and which mask belongs to which box."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dasnet_lightning.data.checks import Box
from dasnet_lightning.data.parts import Part
from dasnet_lightning.data.records import ImageRecord, MaskState, ObjectRecord

MIN_IOU = 0.5  # of a box and the box of a mask, to belong together

Group = list[tuple[Part, ImageRecord]]  # the records of one image, in the order of the parts


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
