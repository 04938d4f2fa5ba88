"""Reasons known before training why a data set cannot be trained or evaluated, each in one sentence."""

from collections.abc import Iterable, Sequence

from dasnet_lightning.data.records import MaskState, ObjectRecord, Source
from dasnet_lightning.data.sources.open import DataSet


def training_obstacle(data: DataSet) -> str:
    """Return why both stages cannot be trained on the labels of a data set; "" if they can."""
    train, both = _objects(data.train), [*_objects(data.train), *_objects(data.val)]
    if not train:
        return "no training image has a label that can be used; add boxes"
    if all(item.ignore for item in train):
        return (
            f"{sum(item.ignore for item in both)} of {len(both)} labels are crowd or difficult, among them all for "
            "training, and crowd is ignored; train them as ordinary objects with --crowd object"
        )
    if has_usable_mask(train):
        return ""
    if any(item.mask is MaskState.PRESENT for item in train):
        return (
            "all training masks belong to crowd or difficult labels; train them as ordinary objects with --crowd object"
        )
    faults = [
        f"image '{record.image_id}': object {item.object_id}: {item.reason}"
        for record in data.train.records
        for item in record.objects
        if item.mask is MaskState.INVALID
    ]
    if faults:
        return f"none of the {len(faults)} training masks can be used, the first: {faults[0]}; correct the masks"
    masks = sum(item.mask is not MaskState.ABSENT for item in both)
    return f"{masks} of {len(both)} labels have a mask, none for training, and stage two needs some; add masks to a few images"


def validation_obstacle(val: Source) -> str:
    """Return why masks cannot be evaluated on the validation split; "" if they can."""
    objects = _objects(val)
    if has_usable_mask(objects):
        return ""
    number, reason = len(val.records), "has a mask that can be used"
    if not objects:
        reason = "has a label"
    elif all(item.ignore for item in objects):
        reason = "has a label that is neither crowd nor difficult"
    measured = "no mask" if "mask" in reason else "nothing"
    return f"none of the {number} validation images {reason}, so {measured} can be measured"


def has_usable_mask(objects: Iterable[ObjectRecord]) -> bool:
    """Return whether an object that is not ignored has a mask."""
    return any(item.mask is MaskState.PRESENT and not item.ignore for item in objects)


def _objects(source: Source) -> Sequence[ObjectRecord]:
    return [item for record in source.records for item in record.objects]
