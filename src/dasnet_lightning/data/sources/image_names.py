"""Image names of annotation files that do not lead into the image folder: URLs and paths of another machine.

Such a name is never followed. If exactly one file below the image folder has its last part as name, that file is meant.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL_FILE = re.compile(r"[?&]d=")  # Label Studio: /data/local-files/?d=folder/image.jpg


def is_url(name: str) -> bool:
    """Return whether a name is a URL, of whatever protocol."""
    return _URL.match(name) is not None


def match_by_name(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Find the file of each name by its last part, anywhere below a folder; links are not followed.

    A bare file name is left out, so is a name that no file or several files fit, or that shares its file with another.
    """
    wanted = {name: _last_parts(name) for name in names if re.search(r"[/\\]", name)}
    if not wanted or not folder.is_dir():
        return {}
    files: dict[str, list[Path]] = {part: [] for parts in wanted.values() for part in parts}
    for parent, _, file_names in os.walk(folder):
        for file_name in file_names:
            if file_name in files:
                files[file_name].append(Path(parent, file_name))
    candidates = {name: {path for part in parts for path in files[part]} for name, parts in wanted.items()}
    matches = {name: next(iter(paths)) for name, paths in candidates.items() if len(paths) == 1}
    uses = Counter(matches.values())
    return {name: path for name, path in matches.items() if uses[path] == 1 and not path.is_symlink()}


def path_in_name(name: str) -> str:
    """Return the path in a name, still escaped: that of a URL, or the `d` of Label Studio's local files."""
    if _LOCAL_FILE.search(name):
        return parse_qs(urlsplit(name).query).get("d", [name])[0]
    return urlsplit(name).path if is_url(name) else name


def _last_parts(name: str) -> tuple[str, ...]:
    """Return the spellings of the last part of a URL or path."""
    path = path_in_name(name)
    return tuple(_unique(re.split(r"[/\\]", text)[-1] for text in (path, unquote(path))))


def _unique(parts: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(part for part in parts if part)
