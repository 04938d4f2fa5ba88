"""List files of VOC data sets: the image ids of a split, one per line, as VOC or other tools write them.

Other tools add a flag (`a 1`), the suffix (`a.jpg`), the folder (`JPEGImages/a.jpg`) or quotes.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from dasnet_lightning.data.images import IMAGE_SUFFIXES
from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import join_names
from dasnet_lightning.errors import DataError

LISTS = ("Main", "Segmentation")  # folders of ImageSets

_FLAG = re.compile(r"(.*\S)\s+-?[01]")


def list_splits(root: Path, lists: Sequence[str] = LISTS) -> dict[str, Path]:
    """Find the list file of each split; a list in an earlier folder takes precedence."""
    splits: dict[str, Path] = {}
    for name in lists:
        for path in sorted((root / "ImageSets" / name).glob("*.txt")):
            splits.setdefault(path.stem, path)
    return splits


def read_split_list(root: Path, split: str, lists: Sequence[str] = LISTS) -> tuple[Path, tuple[str, ...]]:
    """Return the list file of a split and its image ids. Raises DataError if it is missing, empty, or repeats an id."""
    splits = list_splits(root, lists)
    if split not in splits:
        expected = " or ".join(f"ImageSets/{name}/{split}.txt" for name in lists)
        known = f"the folder has the lists {join_names(list(splits))}" if splits else "the folder has no lists"
        raise DataError(f"{root}: has no list of the split '{split}', expected {expected}; {known}")
    folders = (root / "JPEGImages", root / "Annotations")
    files = [path.relative_to(folder) for folder in folders for path in folder.rglob("*") if path.is_file()]
    known_ids = {path.with_suffix("").as_posix() for path in files}
    return splits[split], read_ids(splits[split], known_ids)


def read_ids(file: Path, known_ids: Collection[str] = ()) -> tuple[str, ...]:
    """Read the image ids of a list file, one per line. Raises DataError if it is empty or repeats an id.

    Args:
        file: the list file.
        known_ids: ids that exist; they decide whether the end of a line is a flag or suffix, or part of the id.
    """
    ids = tuple(_read_id(line, known_ids) for line in _read_lines(file))
    if not ids:
        raise DataError(f"{file}: the list is empty, expected one image id per line")
    repeated = sorted(image_id for image_id, count in Counter(ids).items() if count > 1)
    if repeated:
        raise DataError(f"{file}: {len(repeated)} image ids are repeated: {join_names(repeated)}; list each image once")
    return ids


def read_list(file: Path) -> list[str]:
    """Return the image ids of a list file in its order; the list may be empty. Raises DataError if it is unreadable."""
    return [_read_id(line, ()) for line in _read_lines(file)]


def check_lines(file: Path, ids: Sequence[str]) -> list[Problem]:
    """Return a warning that counts the lines with more than an id."""
    longer = [(line, image_id) for line, image_id in zip(_read_lines(file), ids, strict=True) if line != image_id]
    if not longer:
        return []
    line, image_id = longer[0]
    text = f"{len(longer):,} of {len(ids):,} lines hold more than an image id, '{line}' is read as '{image_id}'"
    return [Problem(file, "lines", text, "warning")]


def _read_lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error}), restore the file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read_id(line: str, known_ids: Collection[str]) -> str:
    """Return the first reading of a line that is a known id, else the shortest."""
    readings = list(_readings(line))
    return next((reading for reading in readings if reading in known_ids), readings[-1])


def _readings(line: str) -> Iterator[str]:
    """Yield the possible ids of a line, from the whole line to the one without quotes, flag, folder and suffix."""
    yield line
    flag = _FLAG.fullmatch(line)
    for text in (line, flag[1]) if flag else (line,):
        bare = text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'" else text
        yield bare
        bare = bare.removeprefix("JPEGImages/")
        yield bare
        suffix = Path(bare).suffix
        if suffix.lower() in IMAGE_SUFFIXES:
            yield bare.removesuffix(suffix)
