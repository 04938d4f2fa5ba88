"""Contents of a data set of shapes, by split, and the sources that are built from them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import Fix, RecordsError
from dasnet_lightning.data.sources.drawing import DrawnImage
from dasnet_lightning.data.sources.image_index import ImageIndex
from dasnet_lightning.data.sources.shapes import ShapeSource
from dasnet_lightning.errors import DataError

TRAIN, VAL, TEST = "train", "val", "test"
SPELLING = re.compile(r"(train|val|test)(ing|id|idation|set)?(?![a-z])")  # train2017, valid, Validation, test_images


@dataclass(eq=False)
class SplitContent:
    """Images of one split; `missing` has a problem for each image file that does not exist, `problems` all others."""

    images: list[DrawnImage] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

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
    """

    format: str
    root: Path
    file: Path
    names: tuple[str, ...]
    splits: dict[str, SplitContent]
    problems: list[Problem] = field(default_factory=list)
    category_ids: bool = False


def split_name(name: str) -> str:
    """Return "train", "val" or "test" for the usual spellings of a split, the name itself for others."""
    match = SPELLING.match(name.strip().lower())
    return match[1] if match else name


def build_sources(
    data: ShapeData, allow_missing: bool = False, fix: Fix = "error"
) -> tuple[ShapeSource, ShapeSource | None, tuple[Problem, ...]]:
    """Build the training and the validation source of a data set, and the problems that belong to neither.

    Args:
        data: the contents. Without a split "train", all splits except "test" are joined to one.
        allow_missing: leave out images whose file is missing and report them as problems.
        fix: "drop" leaves out objects that cannot be used and reports them as problems.

    Returns:
        The training source, the validation source (None if the data set has no such split) and the other problems.

    Raises:
        DataError: no image exists, or an image or object cannot be used and no option accepts it.
    """
    notes = list(data.problems)
    names = [name for name in (TRAIN, VAL) if name in data.splits]
    if names != [TRAIN, VAL]:
        names = [name for name in data.splits if name != TEST] if TRAIN not in names else names
        whole = _join([data.splits[name] for name in names])
        train, val = build_source(data, whole, allow_missing, fix), None
    else:
        train, val = (build_source(data, data.splits[name], allow_missing, fix) for name in names)
    for name in sorted(set(data.splits) - set(names)):
        text = f"{len(data.splits[name].images)} images are used neither for training nor for validation"
        notes.append(Problem(data.file, f"split '{name}'", text, "warning"))
    return train, val, tuple(notes)


def build_source(data: ShapeData, content: SplitContent, allow_missing: bool, fix: Fix) -> ShapeSource:
    """Build the source of one split. Raises the errors of `build_sources`."""
    found = any(image.path is not None for image in content.images)
    if content.missing and not (allow_missing and found):
        count = len(content.missing)
        raise RecordsError(content.missing, f"{count} images are missing; restore them, or allow missing images.")
    if not found:
        raise DataError(f"{data.file}: has no image that can be used, expected images beside their labels")
    problems = (*content.missing, *content.problems)
    source = ShapeSource(data.root, data.file, content.images, data.names, fix=fix, problems=problems)
    if data.category_ids:
        source.category_ids = {label: label - 1 for label in range(1, len(source.class_names))}
    return source


def report_unused(root: Path, index: ImageIndex, splits: Mapping[str, SplitContent], lack: str) -> list[Problem]:
    """Return a warning that counts the images that no label file describes; `lack` says so, as "have no label file"."""
    used = {image.path for content in splits.values() for image in content.images}
    unused = [path for path in index.paths if path not in used]
    if not unused:
        return []
    text = f"{len(unused)} of {len(index.paths)} {lack} and are not used, the first is '{unused[0].name}'"
    return [Problem(root, "images", text, "warning")]


def _join(contents: Sequence[SplitContent]) -> SplitContent:
    return SplitContent(
        [image for content in contents for image in content.images],
        [problem for content in contents for problem in content.missing],
        [problem for content in contents for problem in content.problems],
    )
