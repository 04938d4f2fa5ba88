"""Conversion of values that COCO files write in unusual ways, such as numbers as text or ids as floats.

A value with one possible meaning is converted and counted; any other is left for the check that refuses it.
"""

import ast
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import MAX_SIDE

FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}
MAX_SHOWN = 60  # characters of a value in a message

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Conversions:
    """Counts of the converted values by table and description."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count(self, table: str, description: str) -> None:
        """Count one conversion in a table."""
        self.counts[table, description] += 1

    def problems(self, file: Path) -> list[Problem]:
        """Return one warning for each description."""
        return [
            Problem(file, table, f"{count:,} {description}", "warning")
            for (table, description), count in self.counts.items()
        ]


def to_id(value: Any) -> int | str | None:
    """Return an id; a float without a fraction becomes a whole number. None if it is not an id."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) in (int, str) else None


def to_side(value: Any) -> int | None:
    """Return the width or height of an image in pixels, also from text or a float; None if it is not one."""
    number = to_number(value)
    if number is None or not number.is_integer() or not 0 < number <= MAX_SIDE:
        return None
    return int(number)


def is_unknown_side(value: Any) -> bool:
    """Return whether a width or height is left open: missing, null, empty or 0."""
    return value is None or value == "" or (type(value) in (int, float) and value == 0)


def to_flag(value: Any) -> int | None:
    """Return 0 or 1 from a number, a boolean, a word, null, or a list of one of them; None if it is neither."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value == "":
        return 0
    if isinstance(value, str):
        return FLAGS.get(value.strip().lower())
    return int(value) if type(value) in (int, float, bool) and value in (0, 1) else None


def to_name(value: Any) -> str | None:
    """Return a class name, also from a whole number; None if it is not one or blank."""
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def to_number(value: Any) -> float | None:
    """Return a number, also from text; None if it is not one."""
    if type(value) in (int, float):
        return float(value)
    if not isinstance(value, str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def convert(
    row: Mapping[str, Any], key: str, function: Callable[[Any], Value | None], expected: str
) -> tuple[Value | None, str]:
    """Convert one field of a row.

    Returns:
        The value, and the message about it if it cannot be converted.
    """
    value = function(row.get(key))
    return value, "" if value is not None else f"{show_field(row, key)}, expected {expected}"


def show_field(row: Mapping[str, Any], key: str) -> str:
    """Describe a field of a row for a message: `'width' is 'wide'`."""
    text = repr(row.get(key))
    return f"'{key}' is {text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + '...'}"


def to_box(value: Any) -> tuple[list[float] | None, bool]:
    """Return the four numbers of a box, None if it has others, and whether one of them was text."""
    if not isinstance(value, list) or len(value) != 4:
        return None, False
    if all(type(item) in (int, float) for item in value):
        return value, False
    numbers = [number for item in value if (number := to_number(item)) is not None]
    return (numbers, True) if len(numbers) == 4 else (None, False)


def is_missing_box(value: Any) -> bool:
    """Return whether an annotation leaves its box open: null, [] or four zeros."""
    return value is None or (
        isinstance(value, list) and all(type(item) in (int, float) and item == 0 for item in value)
    )


def to_segmentation(value: Any) -> tuple[Any, str]:
    """Return a segmentation in COCO's form, and a description of what was converted; "" if nothing was."""
    if value in ("", {}):
        return None, ""
    if isinstance(value, dict):
        return _to_run_lengths(value)
    if not isinstance(value, list) or not value or _is_polygon(value[0]):
        return value, ""
    if len(value) == 1 and isinstance(value[0], dict) and "counts" in value[0]:
        return _to_run_lengths(value[0])[0], "run lengths inside a list were read"
    for read, description in (
        (_to_flat, "polygons without an outer list were read"),
        (_to_points, "polygons as a list of points were read"),
    ):
        polygon = read(value)
        if polygon is not None:
            return [polygon], description
    polygons = [_to_points(item) or _to_flat(item) for item in value]
    if all(polygon is not None for polygon in polygons):
        return polygons, "polygons as lists of points or of text were read"
    return value, ""


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and type(value[0]) in (int, float) and len(value) > 2


def _to_flat(value: Any) -> list[float] | None:
    """Return x, y, x, y, ... from a list of at least six numbers or numbers as text; None if it is not one."""
    if not isinstance(value, list) or len(value) < 6:
        return None
    numbers = [number for item in value if (number := to_number(item)) is not None]
    return numbers if len(numbers) == len(value) and all(map(math.isfinite, numbers)) else None


def _to_points(value: Any) -> list[float] | None:
    """Return x, y, x, y, ... from a list of at least three [x, y] or {"x": x, "y": y}; None if it is not one."""
    if not isinstance(value, list) or len(value) < 3:
        return None
    pairs = [_to_pair(item) for item in value]
    return [number for pair in pairs if pair is not None for number in pair] if None not in pairs else None


def _to_pair(value: Any) -> Sequence[float] | None:
    if isinstance(value, dict) and set(value) == {"x", "y"}:
        value = [value["x"], value["y"]]
    if not isinstance(value, list) or len(value) != 2:
        return None
    numbers = [number for item in value if (number := to_number(item)) is not None and math.isfinite(number)]
    return numbers if len(numbers) == 2 else None


def _to_run_lengths(value: dict[str, Any]) -> tuple[dict[str, Any], str]:
    size, counts = value.get("size"), value.get("counts")
    description = ""
    if isinstance(size, list) and any(type(side) is not int for side in size) and None not in map(to_side, size):
        size, description = [to_side(side) for side in size], "run lengths with floats or text were read"
    if isinstance(counts, list) and any(type(count) is float for count in counts):
        whole = [int(count) for count in counts if type(count) in (int, float) and float(count).is_integer()]
        if len(whole) == len(counts):
            counts, description = whole, "run lengths with floats or text were read"
    if isinstance(counts, str) and counts[:2] in ("b'", 'b"'):  # str() of bytes; a quote occurs in no run length
        literal = _parse_bytes(counts)
        if literal is not None:
            counts, description = literal, "run lengths written as Python bytes were read"
    return ({**value, "size": size, "counts": counts}, description) if description else (value, "")


def _parse_bytes(text: str) -> str | None:
    try:
        literal = ast.literal_eval(text)
        return literal.decode("ascii") if isinstance(literal, bytes) else None
    except (ValueError, SyntaxError):
        return None
