"""Labels of one data set under the classes of another, by their names."""

import re
from collections.abc import Sequence
from dataclasses import replace

from dasnet_lightning.data.records import ImageRecord, Source
from dasnet_lightning.data.sources.checks import join_names
from dasnet_lightning.data.sources.selection import Selection
from dasnet_lightning.errors import DataError

SHOWN = 5  # names of classes in one message


def map_classes(source: Source, class_names: Sequence[str], owner: str = "the checkpoint") -> tuple[Source, str]:
    """Return a source whose labels are indices into other class names, and a sentence about what does not fit.

    Objects of classes that are not among the names are left out. A name that differs by case or space alone is the same
    class if it fits one name only. The problems of the source stay.

    Args:
        source: the data set.
        class_names: background first.
        owner: whose names they are, for messages.

    Returns:
        The source, and a sentence ("" if all names are equal and none is missing).

    Raises:
        DataError: no class that occurs in the source is among the names.
    """
    if tuple(source.class_names) == tuple(class_names):
        return source, ""
    labels, renamed = match_labels(source.class_names, class_names)
    counts = dict.fromkeys(range(1, len(source.class_names)), 0)
    for record in source.records:
        for item in record.objects:
            counts[item.label] += 1
    unknown = [label for label, count in counts.items() if label not in labels and count]
    if unknown and not any(counts[label] for label in labels):
        raise DataError(
            f"{source.root}: has none of the classes of {owner} ({join_names(list(class_names[1:]), SHOWN)}), only "
            f"{join_names([source.class_names[label] for label in unknown], SHOWN)}"
        )
    mapped = Selection(source, [_relabel(record, labels) for record in source.records], source.problems)
    mapped.class_names, mapped.category_ids = tuple(class_names), {}
    absent = [name for label, name in enumerate(class_names) if label and label not in labels.values()]
    parts = []
    if unknown:
        names = join_names([source.class_names[label] for label in unknown], SHOWN)
        parts.append(
            f"{len(unknown)} of its classes are not among those of {owner} ({names}), their "
            f"{sum(counts[label] for label in unknown)} labels are left out and count as background"
        )
    if renamed:
        pairs = [f"'{old}' is taken for '{new}'" for old, new in renamed]
        parts.append(f"class {join_names(pairs, SHOWN)}")
    if absent:
        parts.append(f"it does not name {len(absent)} classes of {owner} ({join_names(absent, SHOWN)})")
    return mapped, f"{source.root}: {'; '.join(parts)}" if parts else ""


def match_labels(names: Sequence[str], class_names: Sequence[str]) -> tuple[dict[int, int], list[tuple[str, str]]]:
    """Return the new label of each old one that has one, and the names that were matched although they differ."""
    exact = {name: label for label, name in enumerate(class_names) if label}
    loose: dict[str, list[str]] = {}
    for name in exact:
        loose.setdefault(_normalize(name), []).append(name)
    labels = {label: exact[name] for label, name in enumerate(names) if label and name in exact}
    renamed = []
    for label, name in enumerate(names):
        fitting = loose.get(_normalize(name), [])
        if label and label not in labels and len(fitting) == 1 and exact[fitting[0]] not in labels.values():
            labels[label] = exact[fitting[0]]
            renamed.append((name, fitting[0]))
    return labels, renamed


def _normalize(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _relabel(record: ImageRecord, labels: dict[int, int]) -> ImageRecord:
    kept = tuple(replace(item, label=labels[item.label]) for item in record.objects if item.label in labels)
    return replace(record, objects=kept)
