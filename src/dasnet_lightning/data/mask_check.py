"""Decoding of masks before they are relied on: only its pixels show that an annotated mask can be used."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from dasnet_lightning.data.records import ImageRecord, MaskState, Problem, Source
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.data.sources.selection import Selection

MAX_THREADS = 8

MaskFaults = Mapping[str, Mapping[str, str]]  # why a mask cannot be used, by image id and object id
Progress = Callable[[int, int], None]  # (images done, all images)


@dataclass(frozen=True)
class CheckedMasks:
    """Result of decoding masks of both splits.

    Attributes:
        train: training images whose masks were decoded.
        val: validation images whose masks were decoded.
        train_faults: training masks that cannot be used.
        val_faults: validation masks that cannot be used.
    """

    train: frozenset[str] = frozenset()
    val: frozenset[str] = frozenset()
    train_faults: MaskFaults = field(default_factory=dict)
    val_faults: MaskFaults = field(default_factory=dict)

    @property
    def faults(self) -> dict[str, str]:
        """Why masks of both splits cannot be used, by "image 'a': object 7"."""
        return {
            f"image '{image_id}': object {object_id}": reason
            for split in (self.train_faults, self.val_faults)
            for image_id, faults in split.items()
            for object_id, reason in faults.items()
        }

    def problems(self, data: DataSet) -> list[Problem]:
        """Return the faulty masks as problems of the data set."""
        return [Problem(data.root, name, reason, "mask_invalid") for name, reason in self.faults.items()]

    def apply(self, data: DataSet) -> DataSet:
        """Return the data set with the faulty masks marked INVALID."""
        train, val = mark_invalid(data.train, self.train_faults), mark_invalid(data.val, self.val_faults)
        return replace(data, train=train, val=val)


def find_mask_faults(
    source: Source, records: Sequence[ImageRecord], progress: Progress | None = None
) -> dict[str, dict[str, str]]:
    """Decode the present masks of some images of a source; return those that cannot be used.

    Args:
        source: opens the masks.
        records: the images.
        progress: called after each image.
    """

    def check(record: ImageRecord) -> dict[str, str]:
        indices = [index for index, item in enumerate(record.objects) if item.mask is MaskState.PRESENT]
        reasons = source.load_masks(record, indices).reasons if indices else ()
        pairs = zip(indices, reasons, strict=True)
        return {record.objects[index].object_id: reason for index, reason in pairs if reason}

    faults: dict[str, dict[str, str]] = {}
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for done, (record, reasons) in enumerate(zip(records, pool.map(check, records), strict=True), start=1):
            if reasons:
                faults[record.image_id] = reasons
            if progress is not None:
                progress(done, len(records))
    return faults


def check_all_masks(data: DataSet, progress: Progress | None = None) -> CheckedMasks:
    """Decode every mask of a data set."""
    return CheckedMasks(
        train=image_ids(data.train),
        val=image_ids(data.val),
        train_faults=find_mask_faults(data.train, data.train.records, progress),
        val_faults=find_mask_faults(data.val, data.val.records, progress),
    )


def check_drawn_masks(
    data: DataSet, draw: Callable[[Source], Collection[str]], progress: Progress | None = None
) -> CheckedMasks:
    """Decode the validation masks and the training masks inside the budgets.

    Images that lose a mask change what a budget draws. The budgets are therefore drawn again until all drawn images have
    been decoded.

    Args:
        data: the data set.
        draw: returns the ids of the training images inside any budget; called with corrected sources.
        progress: called after each image; the total grows if budgets are drawn again.
    """
    train, faults, checked = data.train, dict[str, dict[str, str]](), set[str]()
    val_faults = find_mask_faults(data.val, data.val.records, progress)
    while new := frozenset(draw(train)) - checked:
        records = [record for record in data.train.records if record.image_id in new]
        faults |= find_mask_faults(data.train, records, progress)
        train, checked = mark_invalid(data.train, faults), checked | new
    return CheckedMasks(frozenset(checked), image_ids(data.val), faults, val_faults)


def mark_invalid(source: Source, faults: MaskFaults) -> Source:
    """Return a source in which the masks named in `faults` are INVALID; the source itself if there are none."""
    if not faults:
        return source
    records = [_mark_record(record, faults.get(record.image_id, {})) for record in source.records]
    return Selection(source, records, source.problems)


def image_ids(source: Source) -> frozenset[str]:
    """Return the ids of all images of a source."""
    return frozenset(record.image_id for record in source.records)


def _mark_record(record: ImageRecord, reasons: Mapping[str, str]) -> ImageRecord:
    if not reasons:
        return record
    objects = tuple(
        replace(item, mask=MaskState.INVALID, reason=reasons[item.object_id]) if item.object_id in reasons else item
        for item in record.objects
    )
    return replace(record, objects=objects)
