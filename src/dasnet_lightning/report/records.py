"""Records of a report, and formatting of its numbers and of tables for the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from dasnet_lightning.errors import one_line

Value = str | int | float | None
Point = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Table:
    """Table of values that are formatted when shown; a row of another length than the header raises ValueError."""

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
    """Named lines over a common x axis; a point that is not finite leaves a gap."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]


@dataclass(frozen=True, eq=False)
class Picture:
    """RGB image with a title and a caption; with panels, a row of images with a title above each.

    Attributes:
        title: heading of the picture.
        image: the picture, or its first panel.
        caption: text below the heading.
        panels: further panels by title.
        image_title: title of the first panel, shown if there are further ones.
    """

    title: str
    image: UInt8[np.ndarray, "H W 3"]
    caption: str = ""
    panels: Mapping[str, UInt8[np.ndarray, "H W 3"]] = field(default_factory=dict)
    image_title: str = ""


@dataclass(frozen=True, eq=False)
class KeyFigure:
    """Number shown in large type at the top of the page; `note` names its protocol."""

    label: str
    value: Value
    note: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    """Content of a report page, in reading order.

    Attributes:
        title: heading of the page.
        summary: one or two sentences below the heading.
        key_figures: the most important numbers.
        tables: tables of results.
        curves: line charts.
        pictures: images with captions.
        accounting: table of the labels that were used and refused.
        command: command that reproduces the run.
        configuration: configuration of the run (YAML), shown verbatim.
        created: date of the report.
        tables_title: heading of the tables.
        accounting_title: heading of the table of labels.
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
    tables_title: str = "Results"
    accounting_title: str = "Labels"


def format_value(value: Value) -> str:
    """Format a number with three decimals below 10 and one below 1,000; None and nan become "-"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, str):
        return "-" if value is None else value
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if math.isnan(value):
        return "-"
    magnitude = abs(value)
    if magnitude >= 10:
        return f"{value:,.1f}" if magnitude < 1000 else f"{value:,.0f}"
    return f"{value:.3f}" if magnitude >= 0.001 or value == 0 else f"{value:.2g}"


def format_text_table(table: Table) -> str:
    """Format a table for the terminal in aligned columns, numbers on the right."""
    cells = [[one_line(format_value(value)) for value in row] for row in table.rows]
    widths = [max(len(row[column]) for row in [list(table.header), *cells]) for column in range(len(table.header))]
    is_number = number_columns(table)

    def format_row(row: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(row, widths, is_number, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [table.title, format_row(table.header), rule, *(format_row(row) for row in cells), table.note]
    return "\n".join(text for text in lines if text)


def number_columns(table: Table) -> list[bool]:
    """Return which columns hold numbers only, apart from None."""
    columns = [[row[index] for row in table.rows] for index in range(len(table.header))]
    return [
        any(not isinstance(value, str) for value in column)
        and all(value is None or not isinstance(value, str) for value in column)
        for column in columns
    ]
