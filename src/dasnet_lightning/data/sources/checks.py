"""Checks that all sources share: boxes, file names, class names, and the errors that report unusable records.

`describe_object` and `parse_object` are inverse to each other: the label audit finds refused objects by their description.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, get_args
from urllib.parse import unquote

from dasnet_lightning.data.records import Problem
from dasnet_lightning.errors import CONTROL_CHARACTERS, ConfigError, DataError

Fix = Literal["error", "drop"]
ObjectNoun = Literal["annotation", "object"]  # what COCO and VOC call an annotated object
Box = tuple[float, float, float, float]

BACKGROUND = "background"  # name of label 0
TOTAL = "all"  # row of the totals in tables and JSON files
MAX_LISTED = 20  # records or names in one message
MAX_SIDE = 65_535  # pixels, JPEG's limit; a mask of an invented size would fill the memory
ROUNDING = 0.01  # pixels; a smaller overhang comes from writing numbers as text

_OBJECT = re.compile(r"(?:annotation|object) (.+?) \(image '(.*)', class '(.*)'\)", re.DOTALL)


class RecordsError(DataError):
    """Several records of a data set cannot be used; `problems` holds all of them, the message lists the first 20."""

    def __init__(self, problems: Sequence[Problem], advice: str) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:MAX_LISTED]]
        hidden = len(self.problems) - len(lines)
        lines += [f"... and {hidden} more"] if hidden else []
        super().__init__("\n".join([*lines, advice]))


@dataclass(frozen=True, eq=False)
class CheckedBox:
    """Result of checking a box.

    Attributes:
        box: the box clipped to its image; None if it was refused.
        action: "", "clipped" or "refused".
        message: why it was clipped or refused.
    """

    box: Box | None
    action: str = ""
    message: str = ""


def describe_object(noun: ObjectNoun, object_id: str, image: str, class_name: str) -> str:
    """Describe one object for a message: `annotation 123 (image 'a/b.jpg', class 'cat')`."""
    return f"{noun} {object_id} (image '{image}', class '{class_name}')"


def parse_object(record: str) -> tuple[str, str, str] | None:
    """Parse a description of `describe_object` into (object_id, image, class_name); None for any other record."""
    match = _OBJECT.fullmatch(record)
    return None if match is None else (match[1], match[2], match[3])


def join_names(names: Sequence[str], limit: int = MAX_LISTED) -> str:
    """Join the first names for a message: "a, b and 3 more"."""
    hidden = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {hidden} more" if hidden > 0 else "")


def check_fix(fix: str) -> None:
    """Raise ConfigError if `fix` is neither "error" nor "drop"."""
    if fix not in get_args(Fix):
        raise ConfigError(f"fix is '{fix}', expected one of {', '.join(get_args(Fix))}")


def check_box(box: Box, size: tuple[int, int], shown: object = None) -> CheckedBox:
    """Check a box against its image and clip it.

    Args:
        box: xyxy edges in pixels.
        size: (height, width) of the image.
        shown: the box as written in the file, for the message; None shows `box`.
    """
    x0, y0, x1, y1 = box
    height, width = size
    text = f"box {list(box) if shown is None else shown}"
    if not all(map(math.isfinite, box)):
        return CheckedBox(None, "refused", f"{text} is not finite")
    for low, high, side in ((x0, x1, "width"), (y0, y1, "height")):
        if high == low:
            return CheckedBox(None, "refused", f"{text} has zero {side}")
        if high < low:
            return CheckedBox(None, "refused", f"{text} has negative {side}, are the corners swapped?")
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        return CheckedBox(None, "refused", f"{text} lies outside the image of {width}x{height} pixels")
    if max(abs(new - old) for new, old in zip(clipped, box, strict=True)) > ROUNDING:
        return CheckedBox(clipped, "clipped", f"{text} extends beyond the image of {width}x{height} pixels, clipped")
    return CheckedBox(clipped)


def unsafe_path(name: str) -> str:
    """Return why a file name from an annotation file must not be followed; "" if it is safe."""
    if not name:
        return "the file name is empty"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or name.startswith("\\"):
        return f"the path '{name}' is absolute, expected one relative to the image folder"
    if ".." in name.replace("\\", "/").split("/"):
        return f"the path '{name}' climbs out of the image folder with '..', expected one inside it"
    if "\0" in name:
        return "the file name contains a zero byte"
    return ""


def locate_files(folder: Path, names: Iterable[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Find files by their names relative to a folder; a name may be percent-encoded, as in a URL.

    Every folder is listed once, which is much faster than a query per file. Links are followed only inside the folder.

    Returns:
        The path of each usable file, and why each of the others cannot be used.
    """
    listings: dict[Path, dict[str, bool]] = {}
    paths: dict[str, Path] = {}
    faults: dict[str, str] = {}
    root = folder.resolve()
    for name in names:
        reason = unsafe_path(name)
        path = None if reason else _find_file(folder, name, listings)
        if path is None:
            faults[name] = reason or f"the image file does not exist, expected {folder / name}"
        elif _is_link(path, folder, listings) and not path.resolve().is_relative_to(root):
            faults[name] = f"'{name}' is a link that leads out of the image folder"
        else:
            paths[name] = path
    return paths, faults


def rename_class(name: str) -> str:
    """Return the name of a class without line breaks and, if it equals a reserved name, with a suffix.

    Names become keys of metrics, rows of tables and lines of messages.
    """
    name = CONTROL_CHARACTERS.sub(" ", name)
    return f"{name} (class)" if name == TOTAL or name.strip().casefold() == BACKGROUND else name


def describe_renamed(changes: Iterable[tuple[str, str]]) -> str:
    """Describe renamed classes, given as (old, new), for a message; "" if there are none."""
    names = [f"'{old}' as '{new}'" for old, new in changes if old != new]
    return f"renamed, because the names are reserved or hold control characters: {join_names(names)}" if names else ""


def check_class_names(file: Path, names: Sequence[str]) -> list[Problem]:
    """Return a warning for each group of class names that differ only by case or space."""

    def normalize(name: str) -> str:
        return re.sub(r"[\s_-]+", "", name).casefold()

    message = "differ only by case or space, are they the same class?"
    return [
        Problem(file, f"classes {', '.join(map(repr, group))}", message, "warning")
        for group in group_by(names, normalize)
        if len(group) > 1
    ]


def group_by(items: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    """Group items by a key, in the order of first appearance."""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _find_file(folder: Path, name: str, listings: dict[Path, dict[str, bool]]) -> Path | None:
    unquoted = unquote(name) if "%" in name else name
    spellings = (
        name,
        name.replace("\\", "/"),
        unquoted,
        unquoted.replace("\\", "/"),
    )  # Windows tools write backslashes
    for spelling in dict.fromkeys(spellings):
        if unsafe_path(spelling):
            continue
        path = folder / spelling
        if path.name in _list_folder(path.parent, listings):
            return path
        # a listing misses names that the file system considers equal (case, Unicode form)
        if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises if a name is too long)
            return path
    return None


def _is_link(path: Path, folder: Path, listings: dict[Path, dict[str, bool]]) -> bool:
    inside = path.relative_to(folder)
    parents = [folder / parent for parent in inside.parents if parent.parts]
    return any(_list_folder(item.parent, listings).get(item.name, True) for item in (path, *parents))


def _list_folder(folder: Path, listings: dict[Path, dict[str, bool]]) -> dict[str, bool]:
    """Return for each name in a folder whether it is a link; each folder is listed once."""
    if folder not in listings:
        listings[folder] = {}
        if os.path.isdir(folder):  # noqa: PTH112 (Path.is_dir raises if a name is too long)
            with os.scandir(folder) as entries:
                listings[folder] = {entry.name: entry.is_symlink() for entry in entries}
    return listings[folder]
