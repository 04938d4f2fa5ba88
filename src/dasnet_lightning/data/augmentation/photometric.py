"""SSD's photometric distortion of uint8 images, in SSD's order.

Brightness and contrast are lookup tables, and hue and saturation share one conversion to HSV. A 320 x 320 image thus takes
well under a millisecond.
"""

from dataclasses import dataclass
from random import Random

import cv2
import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "H W 3"]
LEVELS = np.arange(256, dtype=np.float32)


@dataclass(frozen=True)
class Distortion:
    """Distortion of one image; the defaults leave it unchanged.

    Attributes:
        brightness: added to all channels, in gray levels.
        contrast: factor of all channels.
        saturation: factor of the saturation.
        hue: added to the hue, in degrees.
        contrast_first: whether contrast comes before hue and saturation.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True


def draw_distortion(
    random: Random, brightness: float = 32, contrast: float = 0.5, saturation: float = 0.5, hue: float = 18
) -> Distortion:
    """Draw each of the four with probability 0.5, and whether contrast comes before or after the colors (section 6).

    Args:
        random: generator of all draws.
        brightness: drawn from -brightness..brightness, in gray levels.
        contrast: drawn from 1-contrast..1+contrast.
        saturation: drawn from 1-saturation..1+saturation.
        hue: drawn from -hue..hue, in degrees.
    """

    def maybe(low: float, high: float, otherwise: float) -> float:
        return random.uniform(low, high) if random.random() < 0.5 else otherwise

    return Distortion(
        brightness=maybe(-brightness, brightness, 0.0),
        contrast=maybe(1 - contrast, 1 + contrast, 1.0),
        saturation=maybe(1 - saturation, 1 + saturation, 1.0),
        hue=maybe(-hue, hue, 0.0),
        contrast_first=random.random() < 0.5,
    )


def distort(image: Image, distortion: Distortion) -> Image:
    """Apply brightness, then contrast and colors in the drawn order; every step is clipped to 0..255."""
    before, after = _clip(LEVELS + distortion.brightness), LEVELS
    if distortion.contrast_first:
        before = _clip(before * distortion.contrast)
    else:
        after = _clip(after * distortion.contrast)
    first, last = _to_table(before), _to_table(after)
    if distortion.saturation == 1 and distortion.hue == 0:
        return _apply_table(image, last[first])
    recolored = _change_colors(_apply_table(image, first), distortion.saturation, distortion.hue)
    return _apply_table(recolored, last)


def _change_colors(image: Image, saturation: float, hue: float) -> Image:
    # the "full" conversion maps the hue circle to 0..255, so that it wraps around
    shifted = (LEVELS + round(hue * 256 / 360)) % 256
    table = np.stack([shifted, _clip(LEVELS * saturation), LEVELS], axis=-1)[None]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    return np.asarray(cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8)), cv2.COLOR_HSV2RGB_FULL))


def _to_table(levels: np.ndarray) -> UInt8[np.ndarray, " 256"]:
    return np.rint(levels).astype(np.uint8)


def _apply_table(image: Image, table: UInt8[np.ndarray, " 256"]) -> Image:
    return image if np.array_equal(table, LEVELS) else np.asarray(cv2.LUT(image, table))


def _clip(levels: np.ndarray) -> np.ndarray:
    return np.clip(levels, 0, 255)
