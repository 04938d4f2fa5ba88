"""Lines over a common axis as one SVG element, drawn without a plotting library.

The page that shows it gives the colours (classes s0 to s7, `rule`, `axis`, `line`), so that they follow light and dark.
"""

import math
from collections.abc import Sequence
from html import escape

from dasnet_lightning.report.records import Curve, Point

_COLOURS = 8


def draw_curve(curve: Curve, width: int = 520, height: int = 300) -> str:
    """The curve as one SVG element with axes, ticks and a legend."""
    points = [point for line in curve.series.values() for point in line if _finite(point)]
    x_ticks = _ticks([x for x, _ in points], 6)
    y_ticks = _ticks([y for _, y in points], 5)
    legend, legend_height = _legend(list(curve.series), width)
    left, right, top, bottom = 66.0, width - 18.0, legend_height + 12.0, height - 46.0
    x_low, x_high = min([x_ticks[0], *(x for x, _ in points)]), max([x_ticks[-1], *(x for x, _ in points)])

    def place(point: Point) -> Point:
        across = (point[0] - x_low) / (x_high - x_low)
        up = (point[1] - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    parts = [legend]
    for y in y_ticks:
        at = place((x_low, y))[1]
        parts.append(f'<path class="rule" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
        parts.append(f'<text x="{left - 8:.1f}" y="{at + 4:.1f}" text-anchor="end">{_tick_text(y, y_ticks)}</text>')
    for x in x_ticks:
        at = place((x, y_ticks[0]))[0]
        parts.append(f'<path class="axis" d="M{at:.1f} {bottom:.1f}v5"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 19:.1f}" text-anchor="middle">{_tick_text(x, x_ticks)}</text>')
    parts.append(f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>')
    middle = (top + bottom) / 2
    parts.append(
        f'<text x="{(left + right) / 2:.1f}" y="{height - 8}" text-anchor="middle">{escape(curve.x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(curve.y_label)}</text>'
    )
    if not points:
        parts.append(f'<text x="{(left + right) / 2:.1f}" y="{middle:.1f}" text-anchor="middle">no values</text>')
    for index, line in enumerate(curve.series.values()):
        parts += [_polyline([place(point) for point in run], index) for run in _runs(_thin(line))]
    label = escape(f"{curve.title}: {curve.y_label} against {curve.x_label}", quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _polyline(points: Sequence[Point], index: int) -> str:
    """One unbroken line; few points also get dots, so that a single one is seen."""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points) if len(points) <= 24 else ""
    return f'<g class="s{index % _COLOURS}"><path class="line" d="{path}"/>{dots}</g>'


def _legend(names: Sequence[str], width: int) -> tuple[str, int]:
    """Colour and name of every line in as many rows as needed, and the height that they take."""
    parts, left, row = [], 66.0, 0
    for index, name in enumerate(names):
        needed = 34 + 7.2 * len(name)
        if left + needed > width and left > 66:
            left, row = 66.0, row + 1
        y = 14 + 20 * row
        parts.append(f'<g class="s{index % _COLOURS}"><path class="line" d="M{left:.1f} {y}h16"/></g>')
        parts.append(f'<text x="{left + 22:.1f}" y="{y + 4}">{escape(name)}</text>')
        left += needed
    return "".join(parts), 20 * (row + 1) if names else 0


def _ticks(values: Sequence[float], count: int) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that enclose the values."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    power = 10 ** math.floor(math.log10((high - low) / count))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= count)
    return [step * number for number in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick with as many decimals as the distance of the ticks asks for."""
    step, largest = ticks[1] - ticks[0], max(abs(ticks[0]), abs(ticks[-1]))
    if largest >= 1e6 or step < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """The points between gaps."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if _finite(point):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _thin(points: Sequence[Point], most: int = 1200) -> list[Point]:
    """Long lines keep the lowest and the highest point of every stretch, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(2 * len(points) / most)
    kept = []
    for start in range(0, len(points), stretch):
        indices = range(start, min(start + stretch, len(points)))
        lowest = min(indices, key=lambda index: points[index][1])
        highest = max(indices, key=lambda index: points[index][1])
        kept += [points[index] for index in sorted({lowest, highest})]
    return kept
