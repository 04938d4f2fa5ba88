"""A window of a picture, resized: the pixels of expand, crop and resize in one pass.

An expanded canvas of 2000 x 1500 pixels is never made: only the part of the picture inside the window is touched.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from dasnet_lightning.data.crops import Window

Pair = Float[np.ndarray, "2"]  # vertical, horizontal


def view_image(
    image: UInt8[np.ndarray, "H0 W0 3"], window: Window, size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """Show a window of an image at `size` (height, width), averaging where it shrinks.

    Outside the image the border is repeated; the caller paints that area.
    """
    part, scale, place = _visible(image, window, size)
    # INTER_AREA shifts the picture by half a pixel and more where one axis shrinks and the other grows: only shrink here
    height, width = np.minimum(np.ceil(part.shape[:2] * scale), part.shape[:2]).astype(int).tolist()
    if (height, width) != part.shape[:2]:
        part, scale = _shrink(part, (height, width), scale)
    if part.shape[:2] == size:
        return np.ascontiguousarray(part)
    matrix = _matrix(scale, place)
    return np.asarray(cv2.warpAffine(part, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def view_mask(
    mask: UInt8[np.ndarray, "H0 W0"], window: Window, size: tuple[int, int], fill: int
) -> UInt8[np.ndarray, "H W"]:
    """Show a window of a mask at `size`: each pixel is the nearest one of the mask, or `fill` outside."""
    part, scale, place = _visible(mask, window, size)
    matrix = _matrix(scale, place)
    return np.asarray(
        cv2.warpAffine(
            part, matrix, size[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
        )
    )


def _visible(pixels: np.ndarray, window: Window, size: tuple[int, int]) -> tuple[np.ndarray, Pair, Pair]:
    """The part of the pixels inside a window, the output pixels of one of theirs, and where they begin in the output."""
    x0, y0, x1, y1 = window
    top, left = max(y0, 0), max(x0, 0)
    part = pixels[top : min(y1, pixels.shape[0]), left : min(x1, pixels.shape[1])]
    scale = np.array(size) / (y1 - y0, x1 - x0)
    return part, scale, np.array([top - y0, left - x0]) * scale


def _shrink(part: np.ndarray, size: tuple[int, int], scale: Pair) -> tuple[np.ndarray, Pair]:
    """Average down to `size`; also returns what is left of the scale, so that the place stays exact."""
    shrunk = cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk), scale * part.shape[:2] / size


def _matrix(scale: Pair, place: Pair) -> Float[np.ndarray, "2 3"]:
    """Source to output in pixel indices; pixel centres lie at half indices, hence the shift."""
    (sy, sx), (y, x) = scale, place
    return np.array([[sx, 0, x + (sx - 1) / 2], [0, sy, y + (sy - 1) / 2]])
