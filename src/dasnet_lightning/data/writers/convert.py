"""Conversion of a whole data set into another format: images, labels, and a count of what the format cannot hold."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Literal

from dasnet_lightning.data.records import ImageRecord, MaskState, Source
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.data.writers import WRITERS
from dasnet_lightning.data.writers.base import original_source, read_labels
from dasnet_lightning.errors import ConfigError, DataError

ImageTransfer = Literal["copy", "link"]
INVALID = "masks cannot be used, their objects are written as boxes alone"
RENAMED = "images have another name, without folders and spaces and unique"


@dataclass(frozen=True)
class Conversion:
    """Counts of a conversion.

    Attributes:
        images: number of images of each split.
        objects: number of objects.
        masks: number of objects with a mask.
        losses: what the format cannot hold, as a sentence with a count.
    """

    images: Mapping[str, int]
    objects: int
    masks: int
    losses: Mapping[str, int]


def convert_dataset(
    data: DataSet,
    to: str,
    out: Path,
    images: ImageTransfer = "copy",
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write a data set in another format.

    A data set without a validation split is written without one. A conversion that fails leaves its files behind.

    Args:
        data: the data set.
        to: a name in WRITERS.
        out: a folder that is empty or does not exist.
        images: whether image files are copied or hard-linked; readers refuse symbolic links that leave their folder.
        progress: called with (images done, images).

    Raises:
        ConfigError: the format is unknown, or `out` is not empty.
        DataError: an image cannot be copied.
    """
    if to not in WRITERS:
        raise ConfigError(f"'{to}' is not a format that can be written, expected one of {', '.join(WRITERS)}")
    check_out(out)
    splits = whole_splits(data)
    writer = WRITERS[to](out, data.train.class_names)
    total = sum(len(source.records) for source in splits.values())
    names, renamed = name_images(splits, writer.flat_names)
    losses = Counter({RENAMED: renamed})
    objects, masks, done = 0, 0, 0
    for split, source in splits.items():
        writer.begin(split, source)
        copied = writer.keeps_masks(source)
        for record, name in zip(source.records, names[split], strict=True):
            labels, invalid = read_labels(source, record, name, open_masks=not copied)
            writer.add(split, labels)
            transfer_image(record.path, writer.image_folder(split) / name, images)
            losses[INVALID] += 0 if copied else invalid
            objects += len(labels.objects)
            present = sum(item.mask is MaskState.PRESENT for item in record.objects)
            masks += present if copied else sum(item.mask is not None for item in labels.objects)
            done += 1
            if progress is not None:
                progress(done, total)
    writer.finish()
    counts = {sentence: count for sentence, count in (losses + writer.losses).items() if count}
    return Conversion({split: len(source.records) for split, source in splits.items()}, objects, masks, counts)


def check_out(out: Path) -> None:
    """Raise ConfigError if `out` is a file or a folder that is not empty."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file, expected a folder that is empty or does not exist")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out}: is not empty, name a folder that is empty or does not exist")


def whole_splits(data: DataSet) -> dict[str, Source]:
    """Return the splits of the files: a single one if the library itself reserved the validation images."""
    train = original_source(data.train)
    if train is not data.train and train is original_source(data.val):
        return {"train": train}
    return {"train": data.train, "val": data.val}


def name_images(splits: Mapping[str, Source], flat: bool) -> tuple[dict[str, list[str]], int]:
    """Return the file names to write for each split, and the number of images that are renamed."""
    names = {split: _relative_names(source) for split, source in splits.items()}
    if not flat:
        return names, 0
    taken: set[str] = set()
    flattened: dict[str, list[str]] = {}
    renamed = 0
    for split, given in names.items():
        flattened[split] = []
        for name in given:
            flattened[split].append(_free_name(name, taken))
            renamed += flattened[split][-1] != Path(name).name
    return flattened, renamed


def _relative_names(source: Source) -> list[str]:
    """Return the paths of the images relative to the image folder of a COCO file, else to their common folder."""
    origin = original_source(source)
    root = origin.root if isinstance(origin, COCOSource) else None
    if root is None or not all(record.path.is_relative_to(root) for record in source.records):
        root = _common_folder(source.records)
    return [record.path.relative_to(root).as_posix() for record in source.records]


def _common_folder(records: Sequence[ImageRecord]) -> Path:
    return Path(commonpath([record.path.parent for record in records])) if records else Path()


def _free_name(name: str, taken: set[str]) -> str:
    """Return a name without folders and spaces whose stem is free, also on file systems that ignore case."""
    path = Path(name)
    shortest = re.sub(r"\s+", "_", path.stem)
    longest = re.sub(r"[\s/]+", "_", path.with_suffix("").as_posix())
    candidates = [shortest, longest, *(f"{longest}_{number}" for number in range(2, len(taken) + 3))]
    stem = next(candidate for candidate in candidates if candidate.casefold() not in taken)
    taken.add(stem.casefold())
    return stem + path.suffix


def transfer_image(source: Path, target: Path, images: ImageTransfer) -> None:
    """Copy or hard-link an image. Raises DataError if it cannot be written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if images == "link":
            target.hardlink_to(source.resolve())
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        advice = ", use --images copy" if images == "link" else ""
        raise DataError(f"{target}: cannot be written ({error.strerror or error}){advice}") from error
