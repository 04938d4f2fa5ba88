"""Lines of VOC's list files, as tools spell them: quoted names, names with a suffix, flags after the name."""

import re
from pathlib import Path

from dasnet_lightning.data.sources.image_index import IMAGE_SUFFIXES
from dasnet_lightning.errors import DataError

QUOTED = re.compile(r'"(.*)"')
FLAG = re.compile(r"\s+-?[01]$")  # whether the class of the list occurs in the image
CLEAR_FLAG = re.compile(r"(\s\s|\t)[01]$|\s-1$|\"\s+1$")  # one that does not end a name such as `street 1`


def parse_lines(text: str) -> list[str]:
    """Return the image ids of a list, without quotes, image suffixes, and the flags that end every line of some lists."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if all(map(FLAG.search, lines)) and any(map(CLEAR_FLAG.search, lines)):
        lines = [FLAG.sub("", line) for line in lines]
    names = [QUOTED.sub(r"\1", line) for line in lines]
    return [name.removesuffix(_image_suffix(name)) for name in names]


def read_list(file: Path) -> list[str]:
    """Return the image ids of a list file in its order. Raises DataError if the file cannot be read."""
    try:
        return parse_lines(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from error


def _image_suffix(name: str) -> str:
    suffix = Path(name).suffix
    return suffix if suffix.lower() in IMAGE_SUFFIXES else ""
