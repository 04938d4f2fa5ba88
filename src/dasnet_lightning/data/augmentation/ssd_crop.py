"""Geometry of SSD's expand and min-IoU crop, and the view of an image or mask through the drawn window.

A window is (x0, y0, x1, y1) in whole pixels of an image; after an expand it extends beyond the image. Boxes are xyxy in
pixels of the same image. Expand, crop and resize happen in one pass. Only the part of the image inside the window is
touched, so an expanded canvas of 2000 x 1500 pixels is never allocated.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

CropWindow = tuple[int, int, int, int]
BoxArray = Float[np.ndarray, "n 4"]
YX = Float[np.ndarray, "2"]  # vertical, horizontal

MIN_IOUS: tuple[float | None, ...] = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # None: no crop; 0: any crop
TRIALS = 50


def draw_window(
    boxes: BoxArray,
    size: tuple[int, int],
    random: np.random.Generator,
    expand: float = 0.5,
    max_ratio: float = 4.0,
    scale: tuple[float, float] | None = (0.3, 1.0),
) -> CropWindow:
    """Draw the visible window of an image: an expand with some probability, then a crop of it.

    Args:
        boxes: objects of the image.
        size: (height, width) of the image.
        random: generator of all draws.
        expand: probability of an expand.
        max_ratio: largest side of the expanded canvas, in image sides.
        scale: range of the crop's side, relative to the canvas; None draws no crop.
    """
    height, width = size
    expands = random.random() < expand
    x0, y0, x1, y1 = draw_expand(size, max_ratio, random) if expands else (0, 0, width, height)
    crop = None if scale is None else draw_crop(boxes - (x0, y0, x0, y0), (y1 - y0, x1 - x0), random, scale)
    return (x0, y0, x1, y1) if crop is None else (x0 + crop[0], y0 + crop[1], x0 + crop[2], y0 + crop[3])


def draw_expand(size: tuple[int, int], max_ratio: float, random: np.random.Generator) -> CropWindow:
    """Place an image of `size` (height, width) on a canvas whose sides are 1..max_ratio times as long (section 6).

    Returns the canvas as a window in pixels of the image: x0 and y0 are zero or negative.
    """
    height, width = size
    ratio = random.uniform(1, max_ratio)
    canvas_height, canvas_width = round(height * ratio), round(width * ratio)
    left = int(random.integers(0, canvas_width - width, endpoint=True))
    top = int(random.integers(0, canvas_height - height, endpoint=True))
    return -left, -top, canvas_width - left, canvas_height - top


def draw_crop(
    boxes: BoxArray,
    size: tuple[int, int],
    random: np.random.Generator,
    scale: tuple[float, float] = (0.3, 1.0),
    aspect: tuple[float, float] = (0.5, 2.0),
) -> CropWindow | None:
    """Draw SSD's crop: none, a min IoU of .1, .3, .5, .7 or .9, or any, with up to 50 trials (section 6).

    A trial succeeds if the window contains the center of at least one box and overlaps at least one box with the drawn
    IoU. Without boxes every trial succeeds.

    Args:
        boxes: objects of the image.
        size: (height, width) of the image.
        random: generator of all draws.
        scale: range of the side, relative to the image.
        aspect: range of the aspect ratio, relative to the image.

    Returns:
        The window; None for no crop, also if no trial succeeded.
    """
    min_iou = MIN_IOUS[random.integers(len(MIN_IOUS))]
    if min_iou is None:
        return None
    windows = draw_windows(size, random, scale, aspect)
    success = np.ones(len(windows), dtype=bool)
    if len(boxes):
        success = centers_inside(boxes, windows).any(axis=1) & (pairwise_iou(windows, boxes).max(axis=1) >= min_iou)
    if not success.any():
        return None
    x0, y0, x1, y1 = windows[int(success.argmax())].astype(int).tolist()
    return x0, y0, x1, y1


def draw_windows(
    size: tuple[int, int], random: np.random.Generator, scale: tuple[float, float], aspect: tuple[float, float]
) -> Float[np.ndarray, "trials 4"]:
    """Draw the windows of all trials at once, in whole pixels inside an image of `size` (height, width)."""
    height, width = size
    scales = random.uniform(*scale, size=TRIALS)
    # limits of the aspect ratio keep both sides inside the image
    aspects = random.uniform(np.maximum(aspect[0], scales**2), np.minimum(aspect[1], scales**-2))
    widths = np.clip(np.rint(width * scales * np.sqrt(aspects)), 1, width)
    heights = np.clip(np.rint(height * scales / np.sqrt(aspects)), 1, height)
    left = np.floor(random.uniform(size=TRIALS) * (width - widths + 1))
    top = np.floor(random.uniform(size=TRIALS) * (height - heights + 1))
    return np.stack([left, top, left + widths, top + heights], axis=1)


def centers_inside(boxes: BoxArray, windows: Float[np.ndarray, "m 4"]) -> Bool[np.ndarray, "m n"]:
    """Return whether the center of box n lies inside window m."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    x0, y0, x1, y1 = windows.T[..., None]
    return (x > x0) & (x < x1) & (y > y0) & (y < y1)


def pairwise_iou(first: Float[np.ndarray, "m 4"], second: BoxArray) -> Float[np.ndarray, "m n"]:
    """Return the intersection over union of every pair of boxes."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return np.asarray(intersection / np.maximum(areas[0][:, None] + areas[1][None] - intersection, 1e-9))


def pixel_window(box: Sequence[float], size: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns of all pixels that an xyxy box touches, clipped to `size` (height, width)."""
    x0, y0 = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    x1, y1 = min(int(np.ceil(box[2])), size[1]), min(int(np.ceil(box[3])), size[0])
    return slice(y0, max(y1, y0)), slice(x0, max(x1, x0))


def move_boxes(boxes: np.ndarray, size: tuple[int, ...], window: CropWindow) -> np.ndarray:
    """Convert boxes from 0..1 of an image of `size` to 0..1 of a window; columns after the fourth are kept."""
    x0, y0, x1, y1 = window
    height, width = size[:2]
    moved = boxes.astype(np.float64)
    moved[:, :4] = moved[:, :4] * (width, height, width, height) - (x0, y0, x0, y0)
    moved[:, :4] /= (x1 - x0, y1 - y0, x1 - x0, y1 - y0)
    return moved


def mark_cut(boxes: Float[np.ndarray, "n 5"]) -> Float[np.ndarray, "v 5"]:
    """Clip boxes to 0..1, drop invisible ones, and set the index i (column 4) to -1 - i if the center lies outside."""
    unit = np.array([[0.0, 0.0, 1.0, 1.0]])
    inside = centers_inside(boxes[:, :4], unit)[0]
    marked = boxes.copy()
    marked[:, 4] = np.where(inside, boxes[:, 4], -1 - boxes[:, 4])
    marked[:, :4] = np.clip(boxes[:, :4], 0, 1)
    return marked[((marked[:, 2:4] - marked[:, :2]) > 1e-6).all(axis=1)]


def view_image(
    image: UInt8[np.ndarray, "H0 W0 3"], window: CropWindow, size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """Resize a window of an image to `size` (height, width), averaging where it shrinks.

    The image border is repeated outside the image; the caller paints that area.
    """
    part, scale, offset = _visible_part(image, window, size)
    # INTER_AREA shifts the image by half a pixel or more if one axis shrinks and the other grows: only shrink here
    height, width = np.minimum(np.ceil(part.shape[:2] * scale), part.shape[:2]).astype(int).tolist()
    if (height, width) != part.shape[:2]:
        part, scale = _shrink(part, (height, width), scale)
    if part.shape[:2] == size:
        return np.ascontiguousarray(part)
    matrix = _warp_matrix(scale, offset)
    return np.asarray(cv2.warpAffine(part, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def view_mask(
    mask: UInt8[np.ndarray, "H0 W0"], window: CropWindow, size: tuple[int, int], fill: int
) -> UInt8[np.ndarray, "H W"]:
    """Resize a window of a mask to `size` with nearest-neighbor sampling; pixels outside the mask get `fill`."""
    part, scale, offset = _visible_part(mask, window, size)
    matrix = _warp_matrix(scale, offset)
    return np.asarray(
        cv2.warpAffine(
            part, matrix, size[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
        )
    )


def _visible_part(pixels: np.ndarray, window: CropWindow, size: tuple[int, int]) -> tuple[np.ndarray, YX, YX]:
    """Return the pixels inside a window, the scale from them to output pixels, and their offset in the output."""
    x0, y0, x1, y1 = window
    top, left = max(y0, 0), max(x0, 0)
    part = pixels[top : min(y1, pixels.shape[0]), left : min(x1, pixels.shape[1])]
    scale = np.array(size) / (y1 - y0, x1 - x0)
    return part, scale, np.array([top - y0, left - x0]) * scale


def _shrink(part: np.ndarray, size: tuple[int, int], scale: YX) -> tuple[np.ndarray, YX]:
    """Average down to `size`; also return the remaining scale, so that positions stay exact."""
    shrunk = cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk), scale * part.shape[:2] / size


def _warp_matrix(scale: YX, offset: YX) -> Float[np.ndarray, "2 3"]:
    """Return the matrix from source to output in pixel indices; pixel centers lie at half indices, hence the shift."""
    (sy, sx), (y, x) = scale, offset
    return np.array([[sx, 0, x + (sx - 1) / 2], [0, sy, y + (sy - 1) / 2]])
