"""Images that are in both splits of a data set."""

from pathlib import Path

from dasnet_lightning.data.records import Problem, Source
from dasnet_lightning.data.sources.checks import join_names


def find_overlap(train: Source, val: Source, root: Path) -> tuple[Problem, ...]:
    """Return a warning if images are in both splits: the same file, or files of the same name and content.

    Args:
        train: the training split.
        val: the validation split.
        root: folder or file of the data set, for the message.
    """
    train_paths = {record.path.absolute() for record in train.records}
    by_name: dict[str, list[Path]] = {}
    for record in train.records:
        by_name.setdefault(record.path.name, []).append(record.path)
    shared = [
        record.path.name
        for record in val.records
        if record.path.absolute() in train_paths
        or any(_same_content(record.path, other) for other in by_name.get(record.path.name, ()))
    ]
    if not shared:
        return ()
    message = (
        f"{len(shared)} images are in both splits and make the evaluation too optimistic, remove them from one: "
        f"{join_names(shared)}"
    )
    return (Problem(root, "train and val", message, "warning"),)


def _same_content(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()
