"""Conversion of files, PIL images and arrays to 8-bit RGB.

Values of more than 8 bits are scaled by one range, that of the data set or of their type. If each image were scaled by its
own maximum, the brightness of an object would depend on the brightest pixel beside it.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dasnet_lightning.distributed import is_rank_zero
from dasnet_lightning.errors import ConfigError, DataError

BIT_DEPTHS = (8, 10, 12, 14, 16)  # what cameras and scanners store in 16 bits
EIGHT_BIT_SUFFIXES = (".jpg", ".jpeg", ".bmp", ".webp")
SAMPLE = 64  # images that are opened to find the range of a data set

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRange:
    """Values that become 0 and 255 in images of more than 8 bits; values outside are clipped.

    Attributes:
        low: the darkest value.
        high: the brightest value.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"an image range from {self.low} to {self.high} is empty, expected low < high")


UINT16_RANGE = ImageRange(0, 65535)
FLOAT_RANGE = ImageRange(0, 1)


def convert_to_rgb(
    image: Image.Image | np.ndarray, image_range: ImageRange | None = None, name: str = "image"
) -> UInt8[np.ndarray, "H W 3"]:
    """Convert a PIL image or an array to 8-bit RGB.

    The EXIF orientation of a PIL image is applied. An alpha channel is dropped.

    Args:
        image: a PIL image of any mode, or an array of shape (H, W) or (H, W, 1 to 4) in gray or RGB, with or without
            alpha: bool, uint8, uint16 or floating point.
        image_range: the range of the data set. Default: 0 to 65535 for uint16, 0 to 1 for floating point.
        name: name of the image in error messages.

    Raises:
        DataError: the array is not an image, or its values lie outside the range of their type and no range is given.
    """
    if isinstance(image, Image.Image):
        return convert_pil(ImageOps.exif_transpose(image), image_range, name)
    array = np.asarray(image)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)) or not array.size:
        raise DataError(f"{name}: an array of shape {array.shape} is not an image, expected (H, W) or (H, W, 1 to 4)")
    return _as_color(_to_bytes(array, image_range, name))


def convert_pil(
    image: Image.Image, image_range: ImageRange | None = None, name: str = "image"
) -> UInt8[np.ndarray, "H W 3"]:
    """Convert a PIL image of any mode to 8-bit RGB as it is stored, without its EXIF orientation."""
    if is_deep(image):
        return _as_color(_to_bytes(np.asarray(image), image_range, name))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def is_deep(image: Image.Image) -> bool:
    """Return whether a PIL image has more than 8 bits per pixel and channel."""
    return image.mode.startswith(("I", "F"))


def find_image_range(paths: Sequence[Path], sample: int = SAMPLE) -> ImageRange | None:
    """Find the range of a data set's images from a sample that is spread evenly over them.

    Images of 8 bits are not decoded: their suffix or their header tells them. Files that cannot be read are skipped.

    Args:
        paths: all images, in a fixed order.
        sample: largest number of files to open.

    Returns:
        For whole numbers, 0 to the largest value of the smallest usual bit depth that holds the sample. For floating
        point, 0 to 1 if that holds it, else its extremes. None if no image of the sample has more than 8 bits.

    Raises:
        DataError: an image has values that are not finite.
    """
    candidates = [path for path in paths if path.suffix.lower() not in EIGHT_BIT_SUFFIXES]
    low, high, whole, floating = math.inf, -math.inf, True, False
    step = max(1, math.ceil(len(candidates) / sample))
    for path in candidates[::step]:
        values = _read_deep(path)
        if values is not None:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            whole = whole and bool((values == np.round(values)).all())
            floating = floating or np.issubdtype(values.dtype, np.floating)
    if high < low:
        return None
    if floating and low >= FLOAT_RANGE.low and high <= FLOAT_RANGE.high:
        return FLOAT_RANGE
    if low < 0 or not whole:
        return ImageRange(low, high if high > low else low + 1)
    return ImageRange(0, next((2.0**bits - 1 for bits in BIT_DEPTHS if high < 2**bits), high))


def _read_deep(path: Path) -> np.ndarray | None:
    """Return the values of an image of more than 8 bits; None for other files, which are not decoded."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image) if is_deep(image) else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None  # the reader of the images names the file
    if values is not None and not np.isfinite(values).all():
        raise DataError(f"{path}: has pixels that are not finite, export it again")
    return values


def _to_bytes(array: np.ndarray, image_range: ImageRange | None, name: str) -> UInt8[np.ndarray, "H W *c"]:
    """Convert values to 0..255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    floating = np.issubdtype(array.dtype, np.floating)
    # PIL's mode I is int32, and what Pillow before version 10 makes of a PNG of 16 bits
    if not floating and array.dtype not in (np.uint16, np.int32):
        raise DataError(f"{name}: pixels of type {array.dtype} have no known range, expected uint8, uint16 or float")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{name}: has pixels that are not finite, export it again")
    used = image_range or (FLOAT_RANGE if floating else UINT16_RANGE)
    low, high = float(values.min()), float(values.max())
    if image_range is None and (low < used.low or high > used.high):
        raise DataError(
            f"{name}: has values from {low:g} to {high:g}, expected {used.low:g} to {used.high:g} for {array.dtype}; "
            "scale the values or give the range of the data set"
        )
    if image_range is None:
        _announce(str(array.dtype), used)
    return np.clip(np.round((values - used.low) * (255 / (used.high - used.low))), 0, 255).astype(np.uint8)


def _as_color(values: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """Repeat gray values, and drop alpha."""
    if values.ndim == 2 or values.shape[2] in (1, 2):
        gray = values if values.ndim == 2 else values[:, :, 0]
        return np.repeat(gray[:, :, None], 3, axis=2)
    return np.ascontiguousarray(values[:, :, :3])


@cache  # once per type and process, not once per image
def _announce(dtype: str, used: ImageRange) -> None:
    _logger.warning("images with pixels of type %s are scaled from %g..%g to 0..255", dtype, used.low, used.high)


@cache  # once per data set, which several stages use
def announce_range(data_root: Path, used: ImageRange | None) -> None:
    """Log the range of a data set's images of more than 8 bits on rank 0; None logs nothing."""
    if used is not None and is_rank_zero():
        text = "%s: images of more than 8 bits are scaled from %g..%g to 0..255"
        _logger.warning(text, data_root, used.low, used.high)
