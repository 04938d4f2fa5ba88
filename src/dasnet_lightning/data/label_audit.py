"""What became of every label: one row per annotated object, with the use of its box and of its mask, and why.

The number of rows is the number of annotations in the files: also refused objects have theirs.
"""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

from dasnet_lightning.data.records import ImageRecord, MaskState, ObjectRecord, Source
from dasnet_lightning.data.sources.checks import parse_object
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.storage.atomic import write_text

IGNORED = "ignored: crowd or difficult"
OUTSIDE = "outside the budget"
COLUMNS = ("boxes", "refused", "ignored", "masks", "trained", "outside budget", "evaluated", "absent", "invalid")

ClassCounts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class LabelUse:
    """What became of one object.

    box: "trained", "evaluated", "ignored: ..." or "refused: ...". mask: "trained", "evaluated", "outside the budget",
    "ignored: ...", "absent", "invalid: ..." or, where the box is refused, "refused".
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
    split_name: Literal["train", "val"],
    verify_masks: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LabelUse, ...]:
    """One row for every annotated object of a source.

    mask_ids: the images inside the mask budget, None for all; counts in "train" only. verify_masks: open every mask, also
    outside the budget, and report those that cannot be used. progress: called with (images done, images).
    """
    if split_name not in ("train", "val"):
        raise ConfigError(f"split_name is '{split_name}', expected 'train' or 'val'")
    budget = None if mask_ids is None else frozenset(mask_ids)
    rows: list[LabelUse] = []
    for done, record in enumerate(source.records, start=1):
        reasons = _open_masks(source, record) if verify_masks else {}
        inside = split_name == "val" or budget is None or record.image_id in budget
        rows += [
            _use(record, item, source.class_names, split_name, inside, reasons.get(item.object_id, ""))
            for item in record.objects
        ]
        if progress is not None:
            progress(done, len(source.records))
    return (*rows, *_refused(source, split_name))


def summarize(rows: Iterable[LabelUse]) -> ClassCounts:
    """Counts by class (sorted), and in the row "all"; the columns are COLUMNS.

    boxes: all annotated objects. masks: those that have one, usable or outside the budget.
    """
    table: ClassCounts = {}
    total = dict.fromkeys(COLUMNS, 0)
    for row in rows:
        for counts in (table.setdefault(row.class_name, dict.fromkeys(COLUMNS, 0)), total):
            for column in _columns(row):
                counts[column] += 1
    return {**{name: table[name] for name in sorted(table)}, "all": total}


def write_label_audit(rows: Sequence[LabelUse], path: Path) -> None:
    """Write all rows as CSV, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(LabelUse))
    writer.writerows(astuple(row) for row in rows)
    write_text(path, text.getvalue())


def _use(
    record: ImageRecord, item: ObjectRecord, class_names: Sequence[str], split: str, inside: bool, reason: str
) -> LabelUse:
    used = "trained" if split == "train" else "evaluated"
    if item.mask is MaskState.ABSENT:
        mask = "absent"
    elif item.mask is MaskState.INVALID or reason:
        mask = f"invalid: {item.reason or reason}"
    else:
        mask = IGNORED if item.ignore else used if inside else OUTSIDE
    box = IGNORED if item.ignore else used
    return LabelUse(record.image_id, item.object_id, class_names[item.label], split, box, mask)


def _open_masks(source: Source, record: ImageRecord) -> dict[str, str]:
    """Why masks of an image cannot be used, by object id; all that say to have one are opened."""
    indices = [index for index, item in enumerate(record.objects) if item.mask is MaskState.PRESENT]
    if not indices:
        return {}
    masks = source.load_masks(record, indices)
    return {record.objects[index].object_id: reason for index, reason in zip(indices, masks.reasons, strict=True)}


def _refused(source: Source, split: str) -> list[LabelUse]:
    """Rows of the objects that gave no record. Problems name images by their files, rows by their ids."""
    names = {record.path.name: record.image_id for record in source.records}
    for record in source.records:
        if record.path.is_relative_to(source.root):
            names[record.path.relative_to(source.root).as_posix()] = record.image_id
    rows = []
    for problem in source.problems:
        found = parse_object(problem.record) if problem.action == "refused" else None
        if found is not None:
            object_id, image, class_name = found
            refusal = f"refused: {problem.message}"
            rows.append(LabelUse(names.get(image, image), object_id, class_name, split, refusal, "refused"))
    return rows


def _columns(row: LabelUse) -> list[str]:
    """The columns that a row counts in."""
    columns = ["boxes"]
    columns += [kind for kind in ("refused", "ignored") if row.box.startswith(kind)]
    if row.mask in ("trained", "evaluated", OUTSIDE, IGNORED):
        columns.append("masks")
    for text, column in (("trained",) * 2, ("evaluated",) * 2, (OUTSIDE, "outside budget"), ("absent",) * 2):
        if row.mask == text:
            columns.append(column)
    return [*columns, "invalid"] if row.mask.startswith("invalid") else columns
