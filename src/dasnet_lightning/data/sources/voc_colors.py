"""Index maps that were saved in colors instead of with a palette, and the files that list the colors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dasnet_lightning.errors import DataError

RGB = tuple[int, int, int]


def find_colors(picture: UInt8[np.ndarray, "H W 3"], colors: Sequence[RGB] | np.ndarray) -> np.ndarray:
    """Return for each pixel the position of its color in `colors`, as int64 [H W]. Raises ValueError for other colors."""
    weights = np.array([65536, 256, 1])
    keys = np.asarray(colors, np.int64).reshape(-1, 3) @ weights
    order = np.argsort(keys, kind="stable")
    codes, inverse = np.unique(picture.astype(np.int64) @ weights, return_inverse=True)
    places = np.minimum(np.searchsorted(keys[order], codes), len(keys) - 1)
    unknown = codes[keys[order][places] != codes]
    if len(unknown):
        code = int(unknown[0])
        color = (code >> 16, code >> 8 & 255, code & 255)
        raise ValueError(f"the color {color} does not belong to the color map")
    return order[places][inverse].reshape(picture.shape[:2])


def read_label_map(file: Path) -> dict[str, RGB]:
    """Read the colors of the classes in a `labelmap.txt`, one `name:r,g,b:parts:actions` a line.

    Raises:
        DataError: the file cannot be read, or a line has no color.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from error
    colors: dict[str, RGB] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        # names may contain colons, the three fields after them do not
        name, *fields = line.strip().rsplit(":", 3)
        try:
            red, green, blue = (int(text) for text in fields[0].split(","))
        except (ValueError, IndexError):
            raise DataError(f"{file}: line {number} is '{line.strip()}', expected name:red,green,blue::") from None
        colors[name] = (red, green, blue)
    return colors
