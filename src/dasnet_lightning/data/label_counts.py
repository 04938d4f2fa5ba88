"""Counts of the labels of a data set by split and class: the one place that computes what tables, pages and JSON show."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dasnet_lightning.data.label_audit import BY_MODEL, IGNORED, PSEUDO, USES, LabelUse, has_mask
from dasnet_lightning.data.mask_check import CheckedMasks
from dasnet_lightning.data.sources.open import DataSet

COUNTED = ("boxes", "masks", "not opened", "by a model", "no mask", "invalid mask", "ignored", "refused")

Counts = dict[str, int]


@dataclass(frozen=True)
class LabelCounts:
    """Counts of all labels.

    Boxes are all labels in the annotation files. Each has a mask (decoded), a mask that was not opened, a mask that a model
    made and that is left out, an invalid mask, no mask, or was refused. Crowd and difficult labels are counted as ignored in
    addition.

    Attributes:
        splits: counts of "train", "val", "test" if there is such a split, and "all", with the keys "images", "with masks"
            and COUNTED.
        classes: counts of each class in label order, with the keys "images" and COUNTED.
    """

    splits: dict[str, Counts]
    classes: dict[str, Counts]


def count_labels(data: DataSet, rows: Sequence[LabelUse], checked: CheckedMasks) -> LabelCounts:
    """Count the labels of a data set.

    Args:
        data: the data set.
        rows: the audit of all splits.
        checked: images whose masks were decoded; the masks of all others count as not opened.
    """
    opened = {"train": checked.train, "val": checked.val, "test": checked.test}
    splits = {
        split: _count_split(len(source.records), [row for row in rows if row.split == split], opened[split])
        for split, source in data.sources.items()
    }
    splits["all"] = {key: sum(counts[key] for counts in splits.values()) for key in splits["train"]}
    by_class: dict[str, list[LabelUse]] = {name: [] for name in data.train.class_names[1:]}
    for row in rows:
        by_class.setdefault(row.class_name, []).append(row)
    classes = {name: {"images": len(_images_of(used)), **_count(used, opened)} for name, used in by_class.items()}
    return LabelCounts(splits, classes)


def _count_split(images: int, rows: Sequence[LabelUse], opened: frozenset[str]) -> Counts:
    masked = {row.image_id for row in rows if has_mask(row) and row.image_id in opened}
    return {"images": images, "with masks": len(masked), **_count(rows, dict.fromkeys(USES, opened))}


def _count(rows: Iterable[LabelUse], opened: dict[str, frozenset[str]]) -> Counts:
    counts = dict.fromkeys(COUNTED, 0)
    for row in rows:
        counts["boxes"] += 1
        counts["ignored"] += row.box == IGNORED
        counts["refused"] += row.box.startswith("refused")
        counts["by a model"] += row.mask in (BY_MODEL, PSEUDO)
        counts["no mask"] += row.mask == "absent"
        counts["invalid mask"] += row.mask.startswith("invalid")
        if has_mask(row):
            counts["masks" if row.image_id in opened[row.split] else "not opened"] += 1
    return counts


def _images_of(rows: Iterable[LabelUse]) -> set[tuple[str, str]]:
    return {(row.split, row.image_id) for row in rows if not row.box.startswith("refused")}
