"""Self-contained HTML page of a report: no scripts, no external resources, all text escaped.

The page supports light and dark mode, phones and printing. Curves are inline SVG, pictures inline PNG.
"""

import math
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np

from dasnet_lightning import __version__
from dasnet_lightning.report.curves import draw_curve
from dasnet_lightning.report.records import Curve, KeyFigure, Picture, Report, Table, format_value, number_columns
from dasnet_lightning.storage.atomic import write_text


def write_report(path: str | Path, report: Report) -> Path:
    """Write the page atomically, create missing parent folders, and return the path."""
    target = Path(path)
    write_text(target, render(report))
    return target


def render(report: Report) -> str:
    """Return the page as text."""
    sections = [
        _section(report.tables_title, [_html_table(table) for table in report.tables]),
        _section("Curves", [_html_curve(curve) for curve in report.curves], "wide grid"),
        _section("Pictures", [_html_picture(picture) for picture in report.pictures], "grid"),
        _section(report.accounting_title, [] if report.accounting is None else [_html_table(report.accounting)]),
        _section(
            "Reproduce", [f"<pre>{escape(text)}</pre>" for text in (report.command, report.configuration) if text]
        ),
    ]
    cards = "".join(_card(figure) for figure in report.key_figures)
    footer = f"dasnet_lightning {__version__}" + (f", {report.created}" if report.created else "")
    return _PAGE.format(
        title=escape(report.title),
        style=_STYLE,
        summary=escape(report.summary),
        cards=f'<dl class="cards">{cards}</dl>' if cards else "",
        sections="\n".join(section for section in sections if section),
        footer=escape(footer),
    )


def _html_table(table: Table) -> str:
    attributes = [' class="number"' if is_number else "" for is_number in number_columns(table)]
    head = "".join(
        f'<th scope="col"{attribute}>{escape(name)}</th>'
        for name, attribute in zip(table.header, attributes, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{attribute}>{escape(format_value(value))}</td>"
            for value, attribute in zip(row, attributes, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f'<div class="block"><h3>{escape(table.title)}</h3>{body}{note}</div>'


def _html_curve(curve: Curve) -> str:
    """Return a line chart; lines of one point each are numbers."""
    points = {name: [point for point in line if all(map(math.isfinite, point))] for name, line in curve.series.items()}
    if any(len(line) > 1 for line in points.values()) or not any(points.values()):
        return _figure(draw_curve(curve), curve.title)
    shown = {name: line[0] for name, line in points.items() if line}
    cards = [
        KeyFigure(name, y, f"{curve.y_label}, {curve.x_label} {format_value(int(x) if x == int(x) else x)}")
        for name, (x, y) in shown.items()
    ]
    return _figure(f'<dl class="cards inner">{"".join(map(_card, cards))}</dl>', curve.title)


def _html_picture(picture: Picture) -> str:
    height, width = picture.image.shape[:2]
    if not picture.panels:
        return _figure(_html_image(picture.image, picture.title), picture.title, picture.caption, width > 1.8 * height)
    panels = {picture.image_title: picture.image, **picture.panels}
    columns = 3 if len(panels) % 3 == 0 else 2
    content = "".join(
        f"<div><p>{escape(title)}</p>{_html_image(image, f'{picture.title}, {title}')}</div>"
        for title, image in panels.items()
    )
    return _figure(f'<div class="panels of{columns}">{content}</div>', picture.title, picture.caption, wide=True)


def _html_image(pixels: np.ndarray, title: str) -> str:
    from PIL import Image  # imported here, because commands that print tables do not need it

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    height, width = pixels.shape[:2]
    data = b64encode(buffer.getvalue()).decode("ascii")
    alternative = escape(title, quote=True)
    return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{alternative}">'


def _figure(content: str, title: str, caption: str = "", wide: bool = False) -> str:
    text = f'<p class="note">{escape(caption)}</p>' if caption else ""
    attribute = ' class="wide"' if wide else ""
    return f"<figure{attribute}><figcaption><h3>{escape(title)}</h3>{text}</figcaption>{content}</figure>"


def _card(figure: KeyFigure) -> str:
    note = f'<dd class="note">{escape(figure.note)}</dd>' if figure.note else ""
    return (
        f'<div><dt>{escape(figure.label)}</dt><dd class="value">{escape(format_value(figure.value))}</dd>{note}</div>'
    )


def _section(title: str, blocks: Sequence[str], layout: str = "stack") -> str:
    if not blocks:
        return ""
    return f'<section><h2>{escape(title)}</h2><div class="{layout}">{"".join(blocks)}</div></section>'


_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfd; --card: #fff; --ink: #1d2330; --soft: #5c6577; --line: #dfe3ea;
  --s0: #2563c9; --s1: #d9542b; --s2: #14917f; --s3: #9353c4; --s4: #c58a06; --s5: #d1377f; --s6: #5a8f1f; --s7: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --paper: #12151b; --card: #1a1f28; --ink: #e8ebf1; --soft: #9ba6b8;
  --line: #303846; --s0: #6ea8ff; --s1: #ff8a61; --s2: #45cdb8; --s3: #c79af0; --s4: #f0bd4b; --s5: #ff7fb6;
  --s6: #9fd35c; --s7: #a5aebd; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 24px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 12px; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 44px 0 14px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 8px; overflow-wrap: anywhere; }
.summary { font-size: 1.1rem; color: var(--soft); max-width: 75ch; margin: 0; }
.note { color: var(--soft); font-size: .875rem; margin: 6px 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px; margin: 28px 0 0; }
.cards > div, figure, .block { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 18px; margin: 0; min-width: 0; }
dl.inner { margin: 0; }
dt { color: var(--soft); font-size: .875rem; }
dd { margin: 0; }
dd.value { font-size: 1.75rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
dd.note { margin: 0; }
.stack { display: grid; gap: 18px; grid-template-columns: minmax(0, 1fr); }
.grid { display: grid; gap: 18px; align-items: start; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr)); }
figure.wide { grid-column: 1 / -1; }
figcaption { margin-bottom: 12px; }
figcaption h3 { margin: 0; }
figcaption .note { margin: 2px 0 0; }
img, svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
img { border-radius: 4px; }
.grid figure:not(.wide) img { max-height: 400px; width: auto; }
svg { width: 100%; font-size: 12px; }
.panels { display: grid; gap: 14px; align-items: start; }
.panels p { margin: 0 0 4px; font-size: .9375rem; font-weight: 600; }
@media (min-width: 700px) { .of2 { grid-template-columns: 1fr 1fr; } .of3 { grid-template-columns: 1fr 1fr 1fr; } }
svg text { fill: var(--soft); font-variant-numeric: tabular-nums; }
.rule { stroke: var(--line); fill: none; }
.axis { stroke: var(--soft); fill: none; }
.line { stroke: currentColor; stroke-width: 1.75; fill: none; stroke-linejoin: round; stroke-linecap: round; }
circle { fill: currentColor; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
.s4 { color: var(--s4); } .s5 { color: var(--s5); } .s6 { color: var(--s6); } .s7 { color: var(--s7); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; }
th, td { text-align: left; padding: 7px 18px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { overflow-wrap: break-word; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; margin: 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .875rem/1.5 ui-monospace, Consolas, Menlo, monospace; }
footer { color: var(--soft); font-size: .875rem; margin-top: 48px; }
@media (max-width: 600px) { main { padding: 24px 14px; } h1 { font-size: 1.6rem; } th, th.number { white-space: normal; } }
@media print { :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #ccc; }
  body { font-size: 11pt; } main { max-width: none; padding: 0; } h2, h3 { break-after: avoid; }
  figure, .cards > div, tr { break-inside: avoid; } .scroll { overflow: visible; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>{title}</h1><p class="summary">{summary}</p>{cards}</header>
{sections}
<footer>{footer}</footer>
</main>
</body>
</html>
"""
