"""Report of a run as one self-contained HTML page, and tables for the terminal."""

from dasnet_lightning.report.curves import draw_curve
from dasnet_lightning.report.page import render, write_report
from dasnet_lightning.report.records import (
    Curve,
    KeyFigure,
    Picture,
    Report,
    Table,
    Value,
    format_text_table,
    format_value,
)

__all__ = [
    "Curve",
    "KeyFigure",
    "Picture",
    "Report",
    "Table",
    "Value",
    "draw_curve",
    "format_text_table",
    "format_value",
    "render",
    "write_report",
]
