"""Opening of a data set with a training, a validation and, if its files name one, a test split."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from dasnet_lightning.data.pixels import ImageRange, find_image_range
from dasnet_lightning.data.records import Problem, Source
from dasnet_lightning.data.sources.checks import Fix, RecordsError, join_names, parse_object
from dasnet_lightning.data.sources.formats import NamedSplits, open_splits
from dasnet_lightning.data.sources.model_masks import ModelMasks, leave_out_model_masks
from dasnet_lightning.data.sources.selection import Selection, count_crowd
from dasnet_lightning.data.validation_split import choose_validation
from dasnet_lightning.errors import ConfigError, DataError

Crowd = Literal["ignore", "object"]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Data set with a training and a validation split of the same classes, and perhaps a test split.

    Attributes:
        train: the training split.
        val: the validation split.
        format: "voc", "sbd", "coco", "union", "yolo", "labelme", "cvat" or "label_studio".
        root: folder or file of the data set.
        problems: problems of all splits together; those of one split are in its source.
        test: the test split, with classes of its own, which training does not use; None if the files name none.
        noted: files outside of all splits that `problems` counts already.
        fixed_range: range of images of more than 8 bits that a network was trained with; None finds that of these images.
    """

    train: Source
    val: Source
    format: str
    root: Path
    problems: tuple[Problem, ...] = ()
    test: Source | None = None
    noted: frozenset[Path] = frozenset()
    fixed_range: ImageRange | None = None

    @property
    def sources(self) -> dict[str, Source]:
        """The splits by name: "train", "val" and, if there is one, "test"."""
        splits = {"train": self.train, "val": self.val}
        return splits if self.test is None else splits | {"test": self.test}

    @cached_property
    def image_range(self) -> ImageRange | None:
        """Range of the images of more than 8 bits, found on first use; None if there are none."""
        if self.fixed_range is not None:
            return self.fixed_range
        return find_image_range([record.path for split in (self.train, self.val) for record in split.records])


def open_dataset(
    path: Path | str,
    allow_missing: bool = False,
    fix: Fix = "error",
    crowd: Crowd = "ignore",
    model_masks: ModelMasks = "ignore",
) -> DataSet:
    """Detect the format of a data set and read its records.

    If the data set has no validation split, a fifth of its images becomes one (see `choose_validation`); a problem reports
    this. Unusable labels of a test split are reported and left out in any case.

    Args:
        path: a folder, one label file, or a YAML list of parts.
        allow_missing: leave out images whose file is missing and report them as problems.
        fix: "drop" leaves out objects that cannot be used and reports them as problems.
        crowd: "ignore" neither trains nor evaluates crowd and difficult objects, "object" treats them as ordinary objects.
        model_masks: what to do with masks that a model made (see `model_masks`). "ignore" leaves them out, "train" leaves
            them in the training split, "keep" in every split.

    Raises:
        ConfigError: `crowd` has another value.
        DataError: the format is unknown, or something cannot be used and no option accepts it.
    """
    splits = open_named_splits(path, allow_missing, fix, crowd, model_masks)
    train, val = (splits.train, splits.val) if splits.val is not None else split_by_hash(splits)
    val = val if model_masks == "keep" else leave_out_model_masks(val)
    problems = splits.problems
    if splits.val is None:
        problems = (*problems, _describe_drawn_split(splits.file, train, val))
    data = DataSet(train, val, splits.format, splits.root, problems, splits.test, splits.noted)
    return replace(data, problems=(*data.problems, *_find_overlaps(data), *_find_repeated(data)))


def open_named_splits(
    path: Path | str, allow_missing: bool, fix: Fix, crowd: Crowd, model_masks: ModelMasks = "ignore"
) -> NamedSplits:
    """Read the splits that the files of a data set name; arguments and errors as in `open_dataset`."""
    if crowd not in get_args(Crowd):
        raise ConfigError(f"crowd is '{crowd}', expected one of {', '.join(get_args(Crowd))}")
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"{root}: does not exist, expected the folder or the file of a data set")
    splits = open_splits(root, allow_missing, fix)
    _require_images(splits.train, splits.file)
    if splits.val is not None:
        _require_images(splits.val, root)
    if crowd == "object":
        splits = _map_splits(splits, count_crowd)
    if model_masks == "keep":
        return splits
    train = splits.train
    splits = _map_splits(splits, leave_out_model_masks)
    return replace(splits, train=train) if model_masks == "train" else splits


def _map_splits(splits: NamedSplits, change: Callable[[Source], Source]) -> NamedSplits:
    val, test = (None if source is None else change(source) for source in (splits.val, splits.test))
    return replace(splits, train=change(splits.train), val=val, test=test)


def split_by_hash(splits: NamedSplits) -> tuple[Selection, Selection]:
    """Reserve a fifth of the images for validation. Raises DataError if there are too few."""
    source, count = splits.train, len(splits.train.records)
    val_ids = choose_validation(source.records)
    if not 0 < len(val_ids) < count:
        raise DataError(
            f"{splits.file}: has no validation split and only {count} images, too few to reserve some for validation; "
            "add images or a validation split"
        )
    train_records = [record for record in source.records if record.image_id not in val_ids]
    val_records = [record for record in source.records if record.image_id in val_ids]
    # all problems stay with train, so that each refused label is counted once
    return Selection(source, train_records, source.problems), Selection(source, val_records, ())


def _describe_drawn_split(file: Path, train: Source, val: Source) -> Problem:
    message = (
        f"no validation split was found, {len(val.records)} of {len(train.records) + len(val.records)} images, chosen by "
        f"the hash of their ids, serve as one; {sum(record.has_masks for record in val.records)} of them have annotated masks"
    )
    return Problem(file, "validation", message, "warning")


def _require_images(source: Source, file: Path) -> None:
    """Raise an error that names the missing images if no image of a split is left."""
    if source.records:
        return
    refused = [problem for problem in source.problems if problem.action == "refused"]
    images = [problem for problem in refused if parse_object(problem.record) is None]
    if not images:
        raise DataError(f"{file}: a split has no image, add some or remove its list")
    raise RecordsError(images, f"None of the {len(images)} images of a split can be used; restore the image files.")


def _find_overlaps(data: DataSet) -> Iterator[Problem]:
    """Yield a warning for each two splits that share images: the same file, or files of the same name and content."""
    sources = data.sources
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = _shared_images(sources[first], sources[second]) if second in sources else []
        if shared:
            message = (
                f"{len(shared)} images are in both splits and make the evaluation too optimistic, remove them from one: "
                f"{join_names(shared)}"
            )
            yield Problem(data.root, f"{first} and {second}", message, "warning")


def _find_repeated(data: DataSet) -> Iterator[Problem]:
    """Yield a warning for each split with labels of one image that have the same class and box."""
    for name, source in data.sources.items():
        repeated, first = 0, ""
        for record in source.records:
            keys = Counter((item.label, item.box) for item in record.objects)
            extra = len(record.objects) - len(keys)
            repeated, first = repeated + extra, first or (record.path.name if extra else "")
        if repeated:
            message = f"{repeated} labels have the class and the box of another label of their image, first in {first}"
            yield Problem(data.root, f"split '{name}'", message, "warning")


def _shared_images(first: Source, second: Source) -> list[str]:
    paths = {record.path.absolute() for record in first.records}
    by_name: dict[str, list[Path]] = {}
    for record in first.records:
        by_name.setdefault(record.path.name, []).append(record.path)
    return [
        record.path.name
        for record in second.records
        if record.path.absolute() in paths
        or any(_same_content(record.path, other) for other in by_name.get(record.path.name, ()))
    ]


def _same_content(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()
