"""Contents of a data set of shapes, by split, and the sources that are built from them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import Fix, RecordsError
from dasnet_lightning.data.sources.drawing import DrawnImage
from dasnet_lightning.data.sources.shapes import ShapeSource
from dasnet_lightning.errors import DataError

TRAIN, VAL, TEST, ALL = "train", "val", "test", "all"
UnusedSplit = tuple[Problem, frozenset[Path]]  # a note that counts its images, and its files
SPELLING = re.compile(r"(train|val|test)(ing|id|idation|set)?(?![a-z])")  # train2017, valid, Validation, test_images


@dataclass(eq=False)
class SplitContent:
    """Images of one split.

    Attributes:
        images: the images.
        missing: a problem for each image file that does not exist.
        problems: all other problems.
        ignored: number of shapes that are not used, by their kind.
        joined: number of shapes that are one object with others of their group.
    """

    images: list[DrawnImage] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    joined: int = 0

    def describe_shapes(self, file: Path) -> list[Problem]:
        """Return one warning for all shapes that are not used, and one for those that are parts of an object."""
        notes = []
        if self.ignored:
            counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.ignored.items()))
            notes.append(Problem(file, "shapes", f"{counts} not used, only boxes and masks", "warning"))
        if self.joined:
            text = f"{self.joined:,} shapes belong to the object of another shape with their label and group"
            notes.append(Problem(file, "groups", text, "warning"))
        return notes

    def take(self, file: Path, record: str, path: Path | None, reason: str, used: set[Path]) -> bool:
        """Note which image a label file describes; return False if another one described it before.

        Args:
            file: the label file.
            record: what messages call the image.
            path: the image; None if it is missing.
            reason: why it is missing.
            used: images that are described, of all splits; gets this one.
        """
        if path is None:
            self.missing.append(Problem(file, record, reason, "refused"))
        elif path in used:
            text = f"its image '{path.name}' is described twice, keep one of the two"
            self.problems.append(Problem(file, record, text, "refused"))
            return False
        else:
            used.add(path)
        return True


@dataclass(eq=False)
class ShapeData:
    """Everything that the label files of a data set hold.

    Attributes:
        format: name of the format, such as "yolo".
        root: folder of the data set.
        file: file or folder that notes about the whole data set name.
        names: class names without background, in the order of their labels.
        splits: contents by the name of the split, see `split_name`.
        problems: what belongs to no split.
        category_ids: whether the position in `names` is the data set's own id of a class.
        files: label and list files of all splits, beside those that the images name.
    """

    format: str
    root: Path
    file: Path
    names: tuple[str, ...]
    splits: dict[str, SplitContent]
    problems: list[Problem] = field(default_factory=list)
    category_ids: bool = False
    files: tuple[Path, ...] = ()


def split_name(name: str) -> str:
    """Return "train", "val" or "test" for the usual spellings of a split, the name itself for others."""
    match = SPELLING.match(name.strip().lower())
    return match[1] if match else name


def build_sources(
    data: ShapeData, allow_missing: bool = False, fix: Fix = "error"
) -> tuple[ShapeSource, ShapeSource | None, tuple[UnusedSplit, ...]]:
    """Build the training and the validation source of a data set.

    Args:
        data: the contents. Without a split "train", all splits except "test" are joined to one.
        allow_missing: leave out images whose file is missing and report them as problems.
        fix: "drop" leaves out objects that cannot be used and reports them as problems.

    Returns:
        The training source, the validation source (None if the data set has no such split), and the splits of other
        names, which nothing uses.

    Raises:
        DataError: no image exists, or an image or object cannot be used and no option accepts it.
    """
    names = [name for name in (TRAIN, VAL) if name in data.splits]
    if names != [TRAIN, VAL]:
        others = [name for name in data.splits if name != TEST] or [TEST]
        names = names if TRAIN in names else others
        whole = join_splits([data.splits[name] for name in names])
        train, val = build_source(data, whole, allow_missing, fix), None
    else:
        train, val = (build_source(data, data.splits[name], allow_missing, fix) for name in names)
    unused = [name for name in data.splits if name not in (*names, TEST)]
    return train, val, tuple(_describe_unused(data, name) for name in unused)


def build_test(data: ShapeData) -> ShapeSource:
    """Build the source of the test split without what cannot be used. Raises DataError if no image exists."""
    return build_source(data, data.splits[TEST], allow_missing=True, fix="drop")


def build_source(
    data: ShapeData, content: SplitContent, allow_missing: bool, fix: Fix, class_names: Sequence[str] | None = None
) -> ShapeSource:
    """Build the source of one split, with other class names if they are given. Raises the errors of `build_sources`."""
    found = any(image.path is not None for image in content.images)
    if content.missing and not (allow_missing and found):
        count = len(content.missing)
        raise RecordsError(content.missing, f"{count} images are missing; restore them, or allow missing images.")
    if not found:
        raise DataError(f"{data.file}: has no image that can be used, expected images beside their labels")
    problems = (*content.missing, *content.problems, *content.describe_shapes(data.file))
    source = ShapeSource(
        data.root,
        data.file,
        content.images,
        data.names,
        class_names=class_names,
        fix=fix,
        problems=problems,
        format=data.format,
    )
    source.files = tuple(dict.fromkeys((*data.files, *(image.file for image in content.images))))
    if data.category_ids and class_names is None:
        source.category_ids = {label: label - 1 for label in range(1, len(source.class_names))}
    return source


def _describe_unused(data: ShapeData, name: str) -> UnusedSplit:
    images = data.splits[name].images
    labels = sum(len(image.objects) for image in images)
    text = f"{len(images)} images with {labels} labels: not used, neither for training nor for validation or test"
    paths = frozenset(path for image in images for path in (image.path, image.file) if path is not None)
    return Problem(data.file, f"split '{name}'", text, "unused"), paths


def join_splits(contents: Sequence[SplitContent]) -> SplitContent:
    """Return the contents of several splits as one."""
    return SplitContent(
        [image for content in contents for image in content.images],
        [problem for content in contents for problem in content.missing],
        [problem for content in contents for problem in content.problems],
        sum((content.ignored for content in contents), Counter()),
        sum(content.joined for content in contents),
    )
