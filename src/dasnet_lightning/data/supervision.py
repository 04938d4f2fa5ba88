"""Which training images and which of their masks a stage uses."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dasnet_lightning.data.records import ImageRecord, MaskState, Source
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.data.splits import Split, make_split, mask_labels, parse_budget, read_split_of

Supervision = Literal["boxes", "masks", "mixed"]


@dataclass(frozen=True, eq=False)
class OpenedData:
    """Opened data set and its split; the split is None if the supervision is "boxes"."""

    dataset: DataSet
    split: Split | None


def choose_split(
    source: Source, supervision: Supervision, mask_budget: str | int, split_seed: int, split_file: Path | None
) -> Split | None:
    """Draw the images inside the mask budget, or read them from a file; None if the supervision is "boxes".

    Raises:
        BudgetError: the budget is larger than the number of masks.
    """
    if supervision == "boxes":
        return None
    if split_file is not None:
        return read_split_of(split_file, source.records)
    return make_split(*mask_labels(source.records), parse_budget(mask_budget), split_seed, len(source.class_names))


def find_masked(source: Source, drawn: Collection[str]) -> frozenset[str]:
    """Return the ids of the images inside a budget, and of those that have usable masks, all of them by a model."""
    present = {
        record.image_id: [item.by_model for item in record.objects if item.mask is MaskState.PRESENT]
        for record in source.records
    }
    return frozenset(image_id for image_id, made in present.items() if made and all(made)).union(drawn)


def training_records(
    source: Source, supervision: Supervision, mask_ids: Collection[str], held_out: Collection[str]
) -> list[ImageRecord]:
    """Return the images that are trained: those with masks, or all but the held-out ones."""
    masks_only = supervision == "masks"
    return [
        record
        for record in source.records
        if record.image_id not in held_out and (not masks_only or record.image_id in mask_ids)
    ]
