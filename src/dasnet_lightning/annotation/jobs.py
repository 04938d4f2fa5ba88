"""What is segmented: one job for each image, with the boxes of its objects that get a mask."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dasnet_lightning.data.records import ImageRecord, MaskState, Source
from dasnet_lightning.data.sources.checks import Box
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.data.writers.convert import whole_splits
from dasnet_lightning.errors import DataError


@dataclass(frozen=True)
class ImageJob:
    """One image to segment.

    Attributes:
        path: the image file.
        size: annotated (height, width).
        places: positions of the objects in their record.
        boxes: xyxy in pixels, one for each place.
        class_names: class of each box.
    """

    path: Path
    size: tuple[int, int]
    places: tuple[int, ...]
    boxes: tuple[Box, ...]
    class_names: tuple[str, ...]


def list_splits(data: DataSet) -> dict[str, Source]:
    """Return all splits of the files of a data set, with the test split."""
    splits = whole_splits(data)
    return splits if data.test is None else {**splits, "test": data.test}


def join_class_names(splits: Mapping[str, Source]) -> tuple[str, ...]:
    """Return the classes of all splits, background first; those of the first split keep their labels."""
    return tuple(dict.fromkeys(name for source in splits.values() for name in source.class_names))


def list_wanted(record: ImageRecord) -> list[int]:
    """Return the positions of the objects that have no usable mask of a person; crowd objects stay as they are."""
    return [
        place
        for place, item in enumerate(record.objects)
        if not item.ignore and (item.by_model or item.mask is not MaskState.PRESENT)
    ]


def list_compared(record: ImageRecord) -> list[int]:
    """Return the positions of the objects whose mask a person drew."""
    return [
        place
        for place, item in enumerate(record.objects)
        if not item.ignore and not item.by_model and item.mask is MaskState.PRESENT
    ]


def iterate_jobs(splits: Mapping[str, Source], compare: bool) -> Iterator[ImageJob]:
    """Yield a job for each image of all splits, in their order; images without anything to do have no boxes."""
    for source in splits.values():
        for record in source.records:
            places = sorted([*list_wanted(record), *(list_compared(record) if compare else [])])
            items = [record.objects[place] for place in places]
            names = tuple(source.class_names[item.label] for item in items)
            yield ImageJob(record.path, record.size, tuple(places), tuple(item.box for item in items), names)


def describe_unknown(jobs: Sequence[ImageJob] | Iterator[ImageJob], known: Mapping[str, int]) -> str:
    """Return a sentence about the classes that a checkpoint does not know; "" if it knows all of them."""
    unknown: dict[str, int] = {}
    for job in jobs:
        for name in job.class_names:
            if name not in known:
                unknown[name] = unknown.get(name, 0) + 1
    if not unknown:
        return ""
    names = ", ".join(f"'{name}'" for name in sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
    return (
        f"{len(unknown)} classes are unknown to the checkpoint ({names}); their {sum(unknown.values()):,} objects are "
        "segmented too, because the decoder sees boxes and not classes, but look at them first"
    )


def check_places(data: DataSet, out: Path) -> None:
    """Raise DataError if the output would lie in the data set or contain it."""
    root, target = data.root.resolve(), out.expanduser().resolve()
    folder = root if root.is_dir() else root.parent
    if target == folder or target in root.parents or folder in target.parents:
        raise DataError(f"--out {out}: lies in the data set {data.root} or contains it, name a folder apart from it")
