"""Tables of the labels of a data set, for `dasnet data`, the first lines of a training, and pages."""

from collections.abc import Iterable, Sequence

from dasnet_lightning.data.label_counts import COUNTED, Counts, LabelCounts
from dasnet_lightning.report import Table, Value

RARE = ("not opened", "by a model")


def splits_table(counts: LabelCounts) -> Table:
    """Return one row for each split, and one for both."""
    return _table("Splits", ("split", "images", "with masks"), counts.splits.items())


def classes_table(counts: LabelCounts) -> Table:
    """Return one row for each class, and one for all."""
    rows = [*counts.classes.items(), ("all", counts.splits["all"])]  # a class may be called "all" too
    return _table("Classes", ("class", "images"), rows)


def _table(title: str, first: Sequence[str], rows: Iterable[tuple[str, Counts]]) -> Table:
    """Return a table of counts; columns of masks that were not opened or that a model made appear only if there are any."""
    counts = list(rows)
    shown = [key for key in COUNTED if key not in RARE or any(row[key] for _, row in counts)]
    values: list[list[Value]] = [[name, *(row[key] for key in (*first[1:], *shown))] for name, row in counts]
    return Table(title, [*first, *shown], values)
