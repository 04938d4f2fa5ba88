"""Line charts as one SVG element, drawn without a plotting library.

The page defines the colors of the CSS classes (s0 to s7, `rule`, `axis`, `line`), so that they follow light and dark mode.
"""

import math
from collections.abc import Sequence
from html import escape

from dasnet_lightning.report.records import Curve, Point

_COLORS = 8


def draw_curve(curve: Curve, width: int = 520, height: int = 300) -> str:
    """Draw a curve as one SVG element with axes, ticks and a legend."""
    points = [point for line in curve.series.values() for point in line if _is_finite(point)]
    x_ticks = _ticks([x for x, _ in points], 6)
    y_ticks = _ticks([y for _, y in points], 5)
    legend, legend_height = _legend(list(curve.series), width)
    left, right, top, bottom = 66.0, width - 18.0, legend_height + 12.0, height - 46.0
    x_low, x_high = min([x_ticks[0], *(x for x, _ in points)]), max([x_ticks[-1], *(x for x, _ in points)])

    def to_pixels(point: Point) -> Point:
        x_fraction = (point[0] - x_low) / (x_high - x_low)
        y_fraction = (point[1] - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + x_fraction * (right - left), bottom - y_fraction * (bottom - top)

    parts = [legend]
    for y in y_ticks:
        row = to_pixels((x_low, y))[1]
        parts.append(f'<path class="rule" d="M{left:.1f} {row:.1f}H{right:.1f}"/>')
        parts.append(f'<text x="{left - 8:.1f}" y="{row + 4:.1f}" text-anchor="end">{_format_tick(y, y_ticks)}</text>')
    for x in x_ticks:
        column = to_pixels((x, y_ticks[0]))[0]
        label = _format_tick(x, x_ticks)
        parts.append(f'<path class="axis" d="M{column:.1f} {bottom:.1f}v5"/>')
        parts.append(f'<text x="{column:.1f}" y="{bottom + 19:.1f}" text-anchor="middle">{label}</text>')
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
        segments = _split_at_gaps(_downsample(line))
        parts += [_polyline([to_pixels(point) for point in segment], index) for segment in segments]
    label = escape(f"{curve.title}: {curve.y_label} against {curve.x_label}", quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _polyline(points: Sequence[Point], index: int) -> str:
    """Draw an unbroken line; up to 24 points also get dots, so that a single point is visible."""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points) if len(points) <= 24 else ""
    return f'<g class="s{index % _COLORS}"><path class="line" d="{path}"/>{dots}</g>'


def _legend(names: Sequence[str], width: int) -> tuple[str, int]:
    """Return the legend, wrapped into rows, and its height in pixels."""
    parts, left, row = [], 66.0, 0
    for index, name in enumerate(names):
        entry_width = 34 + 7.2 * len(name)
        if left + entry_width > width and left > 66:
            left, row = 66.0, row + 1
        y = 14 + 20 * row
        parts.append(f'<g class="s{index % _COLORS}"><path class="line" d="M{left:.1f} {y}h16"/></g>')
        parts.append(f'<text x="{left + 22:.1f}" y="{y + 4}">{escape(name)}</text>')
        left += entry_width
    return "".join(parts), 20 * (row + 1) if names else 0


def _ticks(values: Sequence[float], count: int) -> list[float]:
    """Return round numbers that enclose the values; their distance is 1, 2 or 5 times a power of ten."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    power = 10 ** math.floor(math.log10((high - low) / count))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= count)
    return [step * number for number in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _format_tick(value: float, ticks: Sequence[float]) -> str:
    """Format a tick with the decimals that the distance of the ticks requires."""
    step, largest = ticks[1] - ticks[0], max(abs(ticks[0]), abs(ticks[-1]))
    if largest >= 1e6 or step < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _is_finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _split_at_gaps(points: Sequence[Point]) -> list[list[Point]]:
    """Split points into the segments between those that are not finite."""
    segments: list[list[Point]] = [[]]
    for point in points:
        if _is_finite(point):
            segments[-1].append(point)
        elif segments[-1]:
            segments.append([])
    return [segment for segment in segments if segment]


def _downsample(points: Sequence[Point], max_points: int = 1200) -> list[Point]:
    """Reduce a long line to the lowest and the highest point of each interval, which keeps all peaks."""
    if len(points) <= max_points:
        return list(points)
    interval = math.ceil(2 * len(points) / max_points)
    kept = []
    for start in range(0, len(points), interval):
        indices = range(start, min(start + interval, len(points)))
        lowest = min(indices, key=lambda index: points[index][1])
        highest = max(indices, key=lambda index: points[index][1])
        kept += [points[index] for index in sorted({lowest, highest})]
    return kept
