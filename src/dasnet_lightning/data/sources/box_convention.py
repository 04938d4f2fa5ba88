"""Detection of files whose boxes follow another convention than their format, such as corners or normalized numbers.

A convention is judged by the share of boxes that fit it, so that a slip in one box does not hide it. Boxes are compared
with their masks and areas if there are any, and with the image otherwise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

XYWH, XYXY, CENTER = "[x, y, width, height]", "[x0, y0, x1, y1]", "[center x, center y, width, height]"
NORMALIZED, PERCENT = "normalized ", "percentages "
FEWEST = 3  # boxes with a mask or an area
FEW = 10  # boxes; fewer need a clear majority
MIN_FIT = 0.75  # share of boxes that must fit another convention
MAX_FIT = 0.4  # share of boxes that fit the expected one, if masks or areas show another
MAX_ZERO = 8  # pixels; in such small images a box within 0..1 may be meant in pixels

Boxes = Float[np.ndarray, "n 4"]


@dataclass(frozen=True, eq=False)
class WrittenBoxes:
    """Boxes of a file as written, with everything that shows what is meant.

    Attributes:
        boxes: four numbers each.
        sizes: height and width of the image.
        outlines: xyxy extent of the object's mask, nan if unknown.
        areas: area in pixels, nan if unknown.
    """

    boxes: Boxes
    sizes: Float[np.ndarray, "n 2"]
    outlines: Boxes
    areas: Float[np.ndarray, " n"]


def written_boxes(
    boxes: list[tuple[float, float, float, float]],
    sizes: list[tuple[int, int]],
    outlines: list[tuple[float, float, float, float] | None] | None = None,
    areas: list[float | None] | None = None,
) -> WrittenBoxes:
    """Collect the finite boxes of a file."""
    unknown = (np.nan,) * 4
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    finite = np.isfinite(corners).all(axis=1)
    known = [unknown if item is None else item for item in outlines or [None] * len(boxes)]
    numbers = [np.nan if item is None else item for item in areas or [None] * len(boxes)]
    return WrittenBoxes(
        corners[finite],
        np.array(sizes, np.float64).reshape(-1, 2)[finite],
        np.array(known, np.float64).reshape(-1, 4)[finite],
        np.array(numbers, np.float64)[finite],
    )


def find_other_convention(written: WrittenBoxes, expected: str) -> str:
    """Return a sentence that names the convention that most boxes follow instead of the expected one; "" if none.

    Args:
        written: the boxes.
        expected: the convention of the format, XYWH or XYXY.
    """
    for judge in (_judge_by_masks, _judge_by_areas, _judge_by_images):
        verdict = judge(written, expected)
        if verdict is not None:
            return verdict
    return ""


def to_pixels(boxes: Boxes, sizes: Float[np.ndarray, "n 2"], name: str) -> Boxes:
    """Return the xyxy pixels of boxes that follow the convention of that name."""
    unit = next((unit for unit in (NORMALIZED, PERCENT) if name.startswith(unit)), "")
    corners = _FORMS[name.removeprefix(unit)](boxes)
    factor = {"": np.ones_like(sizes), NORMALIZED: sizes, PERCENT: sizes / 100}[unit]
    return corners * factor[:, [1, 0, 1, 0]]


def _from_xywh(boxes: Boxes) -> Boxes:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _from_center(boxes: Boxes) -> Boxes:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


_FORMS: Mapping[str, Callable[[Boxes], Boxes]] = {XYWH: _from_xywh, XYXY: lambda boxes: boxes, CENTER: _from_center}


def _names(expected: str) -> list[str]:
    """Return all conventions, the expected one first and the most likely ones before the others."""
    forms = [expected, *(form for form in _FORMS if form != expected)]
    return [unit + form for unit in ("", NORMALIZED, PERCENT) for form in forms]


def _judge_by_masks(written: WrittenBoxes, expected: str) -> str | None:
    """Compare the boxes with the extents of their masks; "" if the expected convention fits, None if none does."""
    known = np.isfinite(written.outlines).all(axis=1)
    if known.sum() < FEWEST:
        return None
    outlines = written.outlines[known]
    sides = outlines[:, 2:] - outlines[:, :2]
    tolerance = np.maximum(2, 0.1 * sides)[:, [0, 1, 0, 1]]
    fits = {
        name: (np.abs(to_pixels(written.boxes[known], written.sizes[known], name) - outlines) <= tolerance).all(axis=1)
        for name in _names(expected)
    }
    return "" if fits[expected].mean() >= 0.5 else _decide(fits, expected, "their masks")


def _judge_by_areas(written: WrittenBoxes, expected: str) -> str | None:
    """Compare the boxes with the areas in the file, which may be those of the boxes or of the masks."""
    known = written.areas > 1
    if known.sum() < FEWEST:
        return None
    areas = written.areas[known]
    fits = {}
    for name in _names(expected):
        x0, y0, x1, y1 = to_pixels(written.boxes[known], written.sizes[known], name).T
        fits[name] = (x1 > x0) & (y1 > y0) & (np.abs((x1 - x0) * (y1 - y0) - areas) <= 0.02 * areas + 2)
    return _decide(fits, expected, "their areas")


def _decide(fits: Mapping[str, Bool[np.ndarray, " n"]], expected: str, evidence: str) -> str | None:
    best = max(fits, key=lambda name: fits[name].mean())  # the first of equals
    if fits[best].mean() < MIN_FIT or fits[expected].mean() > MAX_FIT:
        return None
    return _sentence(fits[best], fits[expected], best, expected, f"fit {evidence}")


def _judge_by_images(written: WrittenBoxes, expected: str) -> str | None:
    """Compare the boxes with their images: a normalized box is tiny, and corners read as sizes extend beyond."""
    boxes, sizes, count = written.boxes, written.sizes, len(written.boxes)
    if not count:
        return None
    tiny = (boxes.max(axis=1) <= 1) & (sizes.min(axis=1) > MAX_ZERO)
    fits = {name: _inside(to_pixels(boxes, sizes, name), sizes) for name in _names(expected)}
    if tiny.mean() >= MIN_FIT:
        best = max((name for name in fits if name.startswith(NORMALIZED)), key=lambda name: fits[name].mean())
        return _sentence(tiny, ~tiny & fits[expected], best, expected, "lie within 0..1 and are written")
    needed = 0.5 if count < FEW else 0.7
    for name in (form for form in _FORMS if form != expected):
        enough = MIN_FIT if name != CENTER else 0.95
        clear = fits[name].mean() - fits[expected].mean() >= 0.25
        if count >= FEWEST and fits[name].mean() >= enough and fits[expected].mean() <= needed and clear:
            return _sentence(fits[name], fits[expected], name, expected, "lie in their images")
    if _seem_percentages(written):
        best = max((name for name in fits if name.startswith(PERCENT)), key=lambda name: fits[name].mean())
        return _sentence(fits[best], fits[expected], best, expected, "end at most at 100 and seem to be written")
    return None


def _inside(boxes: Boxes, sizes: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    x0, y0, x1, y1 = boxes.T
    return (x1 > x0) & (y1 > y0) & (x0 >= -1) & (y0 >= -1) & (x1 <= sizes[:, 1] + 1) & (y1 <= sizes[:, 0] + 1)


def _seem_percentages(written: WrittenBoxes) -> bool:
    """Return whether many boxes with fractions fill 0..100 and end there, although their images are far larger."""
    far = (written.boxes[:, :2] + written.boxes[:, 2:]).max(axis=1)
    fractions = (written.boxes % 1 != 0).any(axis=1)
    large = written.sizes.min(axis=1) >= 200
    return bool(len(far) >= 20 and large.all() and fractions.mean() > 0.5 and 90 < far.max() <= 100.5)


def _sentence(
    fits: Bool[np.ndarray, " n"], fits_expected: Bool[np.ndarray, " n"], name: str, expected: str, how: str
) -> str:
    return (
        f"{fits.sum():,} of {len(fits):,} boxes {how} as {name}, and {fits_expected.sum():,} as {expected}; "
        f"expected {expected} in absolute pixels"
    )
