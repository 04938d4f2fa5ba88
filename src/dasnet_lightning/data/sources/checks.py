"""Checks that every source of labels shares: boxes, paths, class names, and how what they find is worded and raised.

`describe_object` and `parse_object` are one pair: the accounting finds refused objects again by their description.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, get_args

from dasnet_lightning.data.images import read_image as read_image
from dasnet_lightning.data.records import Problem
from dasnet_lightning.errors import ConfigError, DataError

Fix = Literal["error", "drop"]
Box = tuple[float, float, float, float]
SHOWN = 20
MAX_SIDE = 65_535  # pixels; what JPEG can hold, and a mask of an invented size would fill the memory
ROUNDING = 0.01  # an overhang below a hundredth of a pixel comes from writing numbers as text

_OBJECT = re.compile(r"(?:annotation|object) (.+?) \(image '(.*)', class '(.*)'\)", re.DOTALL)


class RecordsError(DataError):
    """Several records of a data set cannot be used; `problems` holds all of them, the message the first 20."""

    def __init__(self, problems: Sequence[Problem], advice: str) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:SHOWN]]
        hidden = len(self.problems) - len(lines)
        lines += [f"... and {hidden} more"] if hidden else []
        super().__init__("\n".join([*lines, advice]))


@dataclass(frozen=True, eq=False)
class CheckedBox:
    """A box after its check: `action` is "", "clipped" or "refused"; `message` says why; `box` is None where refused."""

    box: Box | None
    action: str = ""
    message: str = ""


def describe_object(kind: Literal["annotation", "object"], object_id: str, image: str, class_name: str) -> str:
    """Name one object for a message: `annotation 123 (image 'a/b.jpg', class 'cat')`."""
    return f"{kind} {object_id} (image '{image}', class '{class_name}')"


def parse_object(record: str) -> tuple[str, str, str] | None:
    """Take (object_id, image, class_name) out of a description; None where it describes something else."""
    match = _OBJECT.fullmatch(record)
    return None if match is None else (match[1], match[2], match[3])


def check_fix(fix: str) -> None:
    """Raise ConfigError where `fix` is none of the known ways to treat a record that cannot be used."""
    if fix not in get_args(Fix):
        raise ConfigError(f"fix is '{fix}', expected one of {', '.join(get_args(Fix))}")


def check_box(box: Box, size: tuple[int, int], shown: object = None) -> CheckedBox:
    """Check a box (xyxy edges) against its image's (height, width), and clip it to the image.

    `shown` is the box as the file writes it, for the message.
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
        return CheckedBox(None, "refused", f"{text} lies outside the image of {width}x{height}")
    if max(abs(new - old) for new, old in zip(clipped, box, strict=True)) > ROUNDING:
        return CheckedBox(clipped, "clipped", f"{text} reaches out of the image of {width}x{height}, clipped")
    return CheckedBox(clipped)


def box_hint(boxes: Sequence[tuple[Box, tuple[int, int]]]) -> str:
    """Recognise from all boxes of a file (x, y, width, height; with their image sizes) that they mean something else.

    One wrong box is a slip; all of them alike are a different convention, which clipping would hide. "" where all is well.
    """
    finite = [(box, size) for box, size in boxes if all(map(math.isfinite, box))]
    if not finite:
        return ""
    if all(max(box) <= 1 and min(size) > 8 for box, size in finite):
        return "all boxes lie within 0..1: they seem normalised, expected absolute pixels"
    grows = all(box[2] > box[0] and box[3] > box[1] for box, _ in finite)
    over = sum(box[0] + box[2] > size[1] + 1 or box[1] + box[3] > size[0] + 1 for box, size in finite)
    if len(finite) >= 3 and grows and over >= 0.3 * len(finite):
        return (
            f"{over} of {len(finite)} boxes reach out of their images and every width exceeds its x: they seem to be "
            "[x0, y0, x1, y1], expected [x, y, width, height]"
        )
    return ""


def unsafe_path(name: str) -> str:
    """Say why a file name of an annotation file may not be followed; "" where it may."""
    if not name:
        return "the file name is empty"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or name.startswith("\\"):
        return f"the path '{name}' is absolute, expected one relative to the image folder"
    if ".." in name.replace("\\", "/").split("/"):
        return f"the path '{name}' climbs out of the image folder with '..'"
    if "\0" in name:
        return "the file name holds a zero byte"
    return ""


def locate_files(folder: Path, names: Iterable[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Find files by their names relative to a folder; returns the paths, and why the others cannot be used.

    Every folder is listed once, which is far quicker than asking for each file. Links are followed inside the folder only.
    """
    listed: dict[Path, dict[str, bool]] = {}
    paths: dict[str, Path] = {}
    faults: dict[str, str] = {}
    root = folder.resolve()
    for name in names:
        reason = unsafe_path(name)
        path = None if reason else _find(folder, name, listed)
        if path is None:
            faults[name] = reason or f"the image file does not exist, looked for {folder / name}"
        elif _is_link(path, folder, listed) and not path.resolve().is_relative_to(root):
            faults[name] = f"'{name}' is a link that leads out of the image folder"
        else:
            paths[name] = path
    return paths, faults


def _find(folder: Path, name: str, listed: dict[Path, dict[str, bool]]) -> Path | None:
    for spelled in dict.fromkeys((name, name.replace("\\", "/"))):  # Windows tools write backslashes
        path = folder / spelled
        # the listing misses names that the file system takes for equal (case, unicode form): ask for those
        if path.name in _list(path.parent, listed) or os.path.isfile(path):  # noqa: PTH113 (no error for names too long)
            return path
    return None


def _is_link(path: Path, folder: Path, listed: dict[Path, dict[str, bool]]) -> bool:
    inside = path.relative_to(folder)
    parents = [folder / parent for parent in inside.parents if parent.parts]
    return any(_list(item.parent, listed).get(item.name, True) for item in (path, *parents))


def _list(folder: Path, listed: dict[Path, dict[str, bool]]) -> dict[str, bool]:
    if folder not in listed:
        listed[folder] = {}
        if os.path.isdir(folder):  # noqa: PTH112
            with os.scandir(folder) as entries:
                listed[folder] = {entry.name: entry.is_symlink() for entry in entries}
    return listed[folder]


def check_class_names(file: Path, names: Sequence[str]) -> list[Problem]:
    """Warn about class names that differ only by case or space."""

    def plain(name: str) -> str:
        return re.sub(r"[\s_-]+", "", name).casefold()

    return [
        Problem(
            file, f"classes {', '.join(map(repr, group))}", "differ only by case or space, are they one?", "warning"
        )
        for group in group_by(names, plain)
        if len(group) > 1
    ]


def group_by(items: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    """Group items by a key, in the order of their first appearance."""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
