"""What a report says: small records, and numbers as a reader wants them. Tables also print to a terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

Value = str | int | float | None
Point = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Table:
    """Rows under a header; numbers are formatted when shown. Raises ValueError for a row of another length."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Value]]
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(
                    f"table '{self.title}': row {number} has {len(row)} cells, the header has {len(self.header)}"
                )


@dataclass(frozen=True, eq=False)
class Curve:
    """Lines over a common x axis, by name; points that are not finite leave a gap."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]


@dataclass(frozen=True, eq=False)
class Picture:
    title: str
    image: UInt8[np.ndarray, "H W 3"]
    caption: str = ""


@dataclass(frozen=True, eq=False)
class KeyFigure:
    """One number that matters, large at the head of the page; `note` names its protocol."""

    label: str
    value: Value
    note: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    """What a page says, in the order in which it is read.

    accounting lists the labels used and refused; command reproduces the run; configuration is shown as it is (YAML).
    """

    title: str
    summary: str
    key_figures: Sequence[KeyFigure] = ()
    tables: Sequence[Table] = ()
    curves: Sequence[Curve] = ()
    pictures: Sequence[Picture] = ()
    accounting: Table | None = None
    command: str = ""
    configuration: str = ""
    created: str = ""


def format_value(value: Value) -> str:
    """A number as a reader wants it: three decimals below 10, one below 1,000; "-" for None and not-a-number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, str):
        return "-" if value is None else value
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if math.isnan(value):
        return "-"
    size = abs(value)
    if size >= 10:
        return f"{value:,.1f}" if size < 1000 else f"{value:,.0f}"
    return f"{value:.3f}" if size >= 0.001 or value == 0 else f"{value:.2g}"


def format_text_table(table: Table) -> str:
    """The table in aligned columns, numbers to the right, for the terminal."""
    cells = [[format_value(value) for value in row] for row in table.rows]
    widths = [max(len(row[column]) for row in [list(table.header), *cells]) for column in range(len(table.header))]
    right = number_columns(table)

    def line(row: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(row, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [table.title, line(table.header), rule, *(line(row) for row in cells), table.note]
    return "\n".join(text for text in lines if text)


def number_columns(table: Table) -> list[bool]:
    columns = [[row[index] for row in table.rows] for index in range(len(table.header))]
    return [
        any(not isinstance(value, str) for value in column)
        and all(value is None or not isinstance(value, str) for value in column)
        for column in columns
    ]
