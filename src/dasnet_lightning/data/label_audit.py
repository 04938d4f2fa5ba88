"""Audit of every label: one row per annotated object with the use of its box and of its mask.

Refused objects have a row too, so the number of rows is the number of annotations in the files. The audit opens no file: it
relies on the states of the masks in the records, which `mask_check` corrects.
"""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from dasnet_lightning.data.mask_check import Progress, find_mask_faults, mark_invalid
from dasnet_lightning.data.records import MaskState, ObjectRecord, Source
from dasnet_lightning.data.sources.checks import parse_object
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.storage.atomic import write_text

IGNORED = "ignored: crowd or difficult"
OUTSIDE_BUDGET = "outside the budget"
HELD_OUT = "held out: chooses the score threshold"
BY_MODEL = "left out: made by a model"
PSEUDO = "pseudo-label: made by a model"
TEST_SPLIT = "test split"  # neither trained nor evaluated by a training
USES = {"train": "trained", "val": "evaluated", "test": TEST_SPLIT}
COLUMNS = ("boxes", "refused", "ignored", "masks", "trained", "outside budget", "evaluated", "absent", "invalid")

ClassCounts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class LabelUse:
    """Use of one annotated object.

    Attributes:
        image_id: id of the image.
        object_id: id of the object.
        class_name: name of its class.
        split: "train", "val" or "test".
        box: "trained", "held out: ...", "evaluated", "test split", "ignored: ..." or "refused: ...".
        mask: "trained", "evaluated", "test split", "outside the budget", "ignored: ...", "left out: ...",
            "pseudo-label: ...", "absent", "invalid: ..." or, if the box is refused, "refused".
    """

    image_id: str
    object_id: str
    class_name: str
    split: str
    box: str
    mask: str


def audit_labels(
    source: Source,
    mask_ids: Collection[str] | None,
    split_name: Literal["train", "val", "test"],
    verify_masks: bool = False,
    progress: Progress | None = None,
) -> tuple[LabelUse, ...]:
    """Return one row for every annotated object of a source.

    Args:
        source: the data set.
        mask_ids: images inside the mask budget, None for all; only used for "train".
        split_name: which split the source is.
        verify_masks: decode every mask, also outside the budget, and report those that cannot be used.
        progress: called with (images done, all images) while masks are decoded.

    Raises:
        ConfigError: `split_name` has another value.
    """
    if split_name not in USES:
        raise ConfigError(f"split_name is '{split_name}', expected {', '.join(map(repr, USES))}")
    budget = None if mask_ids is None else frozenset(mask_ids)
    if verify_masks:
        source = mark_invalid(source, find_mask_faults(source, source.records, progress))
    rows = [
        _row_of(item, record.image_id, source.class_names, split_name, budget is None or record.image_id in budget)
        for record in source.records
        for item in record.objects
    ]
    return (*rows, *_rows_of_refused(source, split_name))


def audit_dataset(
    data: DataSet, mask_ids: Collection[str] | None = None, held_out: Collection[str] = ()
) -> tuple[LabelUse, ...]:
    """Return one row for every annotated object of all splits.

    Args:
        data: the data set.
        mask_ids: images inside the mask budget, None for all.
        held_out: training images whose boxes no stage trains.
    """
    train = [
        replace(row, box=HELD_OUT) if row.box == "trained" and row.image_id in held_out else row
        for row in audit_labels(data.train, mask_ids, "train")
    ]
    test = () if data.test is None else audit_labels(data.test, None, "test")
    return (*train, *audit_labels(data.val, None, "val"), *test)


def summarize(rows: Iterable[LabelUse]) -> ClassCounts:
    """Count rows by class (sorted by name), with a last entry "all".

    The columns are COLUMNS. "boxes" counts all annotated objects; "masks" those with a usable mask, also outside the
    budget.
    """
    table: ClassCounts = {}
    total = dict.fromkeys(COLUMNS, 0)
    for row in rows:
        for counts in (table.setdefault(row.class_name, dict.fromkeys(COLUMNS, 0)), total):
            for column in _columns_of(row):
                counts[column] += 1
    return {**{name: table[name] for name in sorted(table)}, "all": total}


def write_label_audit(rows: Sequence[LabelUse], path: Path) -> None:
    """Write all rows as CSV, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(LabelUse))
    writer.writerows(astuple(row) for row in rows)
    write_text(path, text.getvalue())


def has_mask(row: LabelUse) -> bool:
    """Return whether an object has a mask that can be used, whatever it is used for."""
    return row.mask in (*USES.values(), OUTSIDE_BUDGET, IGNORED)


def _row_of(item: ObjectRecord, image_id: str, class_names: Sequence[str], split: str, in_budget: bool) -> LabelUse:
    used = USES[split]
    if item.mask is MaskState.ABSENT:
        mask = BY_MODEL if item.by_model else "absent"
    elif item.mask is MaskState.INVALID:
        mask = f"invalid: {item.reason}"
    elif item.ignore:
        mask = IGNORED
    elif item.by_model:
        mask = PSEUDO if in_budget and split == "train" else BY_MODEL
    else:
        mask = used if in_budget or split != "train" else OUTSIDE_BUDGET
    box = IGNORED if item.ignore else used
    return LabelUse(image_id, item.object_id, class_names[item.label], split, box, mask)


def _rows_of_refused(source: Source, split: str) -> list[LabelUse]:
    """Return rows of refused objects; problems name images by file, so file names are mapped back to image ids."""
    image_ids = {record.path.name: record.image_id for record in source.records}
    for record in source.records:
        if record.path.is_relative_to(source.root):
            image_ids[record.path.relative_to(source.root).as_posix()] = record.image_id
    rows = []
    for problem in source.problems:
        description = parse_object(problem.record) if problem.action == "refused" else None
        if description is not None:
            object_id, image, class_name = description
            box = f"refused: {problem.message}"
            rows.append(LabelUse(image_ids.get(image, image), object_id, class_name, split, box, "refused"))
    return rows


def _columns_of(row: LabelUse) -> list[str]:
    """Return the columns that count a row."""
    columns = ["boxes"]
    columns += [column for column in ("refused", "ignored") if row.box.startswith(column)]
    if has_mask(row):
        columns.append("masks")
    if row.mask in ("trained", "evaluated", "absent"):
        columns.append(row.mask)
    if row.mask == OUTSIDE_BUDGET:
        columns.append("outside budget")
    if row.mask.startswith("invalid"):
        columns.append("invalid")
    return columns
