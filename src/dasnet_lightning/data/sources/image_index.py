"""Images below a folder and the names by which annotation files mean them."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from dasnet_lightning.data.images import IMAGE_SUFFIXES
from dasnet_lightning.data.sources.image_names import path_in_name

UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # Label Studio prepends it to the names of uploaded files


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """All image files below a folder, found by path, by the end of a path, or by name if that is unique.

    Attributes:
        root: the folder; links that lead out of it are left out.
        paths: all images, sorted.
        by_name: the images of each file name.
        by_stem: the images of each file name without its suffix.
    """

    root: Path
    paths: tuple[Path, ...]
    by_name: dict[str, list[Path]] = field(default_factory=dict)
    by_stem: dict[str, list[Path]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.paths:
            self.by_name.setdefault(path.name, []).append(path)
            self.by_stem.setdefault(path.stem, []).append(path)

    def find(self, name: str, near: Path | None = None) -> tuple[Path | None, str]:
        """Return the image that a name of an annotation file means, or None and the reason.

        Args:
            name: a file name, a relative or absolute path with either slash, or a URL with escaped characters.
            near: folder that relative paths start from and whose images win over others of the same name.
        """
        written = unquote(path_in_name(name)).replace("\\", "/")
        parts = [part for part in written.split("/") if part not in ("", ".", "..")]
        if not parts:
            return None, "the file name is empty"
        candidates = self._candidates(parts[-1]) or self.by_name.get(name.replace("\\", "/").split("/")[-1], [])
        start = near or self.root
        exact = Path(os.path.normpath(start / written))
        # a folder that exists says where the image should be: one of the same name elsewhere is another image
        if not candidates or (len(parts) > 1 and exact not in candidates and exact.parent.is_dir()):
            return None, f"the image file does not exist, no image below {self.root} is called '{written}'"
        for wanted in (exact, start / parts[-1]):
            if wanted in candidates:
                return wanted, ""
        most = max(_shared_end(path.parts[:-1], parts[:-1]) for path in candidates)
        matching = [path for path in candidates if _shared_end(path.parts[:-1], parts[:-1]) == most]
        matching = _closest(matching, near) if near else matching
        if len(matching) > 1:
            shown = " and ".join(str(path.relative_to(self.root)) for path in matching[:2])
            return None, f"'{name}' could be {shown}, give the files different names"
        return matching[0], ""

    def find_stem(self, stem: str, near: Path) -> Path | None:
        """Return the image with this name before the suffix whose folder is closest to `near`; None if unclear."""
        candidates = self.by_stem.get(stem, [])
        beside = [path for path in candidates if path.parent == near]
        closest = beside or _closest(candidates, near)
        return closest[0] if len(closest) == 1 or beside else None

    def _candidates(self, name: str) -> list[Path]:
        return self.by_name.get(name) or self.by_name.get(UPLOAD_PREFIX.sub("", name)) or []


def list_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files below a folder with one of these suffixes (lower case), sorted, without hidden files."""
    return sorted(path for path in _walk(root) if path.suffix.lower() in suffixes)


def index_images(root: Path) -> ImageIndex:
    """List all images below a folder."""
    return ImageIndex(root, tuple(list_files(root, IMAGE_SUFFIXES)))


def assign_ids(root: Path, paths: list[Path]) -> dict[Path, str]:
    """Return an id for each image: its path below the root, without the suffix unless two would be equal."""
    short = {path: path.relative_to(root).with_suffix("").as_posix() for path in paths}
    counts = Counter(short.values())
    return {path: path.relative_to(root).as_posix() if counts[item] > 1 else item for path, item in short.items()}


def _walk(root: Path) -> Iterator[Path]:
    resolved = root.resolve()
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "__MACOSX"]
        for name in files:
            path = Path(folder) / name
            if not name.startswith(".") and not (path.is_symlink() and not path.resolve().is_relative_to(resolved)):
                yield path


def _closest(paths: list[Path], folder: Path) -> list[Path]:
    """Return the paths whose folders agree with `folder` in most parts, counted from both ends."""
    scores = [
        _shared_end(path.parent.parts[::-1], folder.parts[::-1]) + _shared_end(path.parent.parts, folder.parts)
        for path in paths
    ]
    return [path for path, score in zip(paths, scores, strict=True) if score == max(scores)]


def _shared_end(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the equal parts at the end of two sequences."""
    count = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        count += 1
    return count
