"""Photometric distortion in SSD's order, on uint8 pixels.

Brightness and contrast are look-up tables, hue and saturation take one trip to HSV, so an image of 320 x 320 costs well
under a millisecond.
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
    """What is done to one image; the defaults do nothing. `hue` is in degrees, `brightness` in grey levels."""

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True


def draw_distortion(
    random: Random, brightness: float = 32, contrast: float = 0.5, saturation: float = 0.5, hue: float = 18
) -> Distortion:
    """Draw each of the four with probability 0.5, and whether the contrast comes before or after the colours.

    brightness and hue are drawn from -x..x, contrast and saturation from 1-x..1+x (section 6).
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
    """Apply brightness, then contrast and colours in the drawn order; every step is clipped to 0..255."""
    before, after = _clip(LEVELS + distortion.brightness), LEVELS
    if distortion.contrast_first:
        before = _clip(before * distortion.contrast)
    else:
        after = _clip(after * distortion.contrast)
    first, last = _table(before), _table(after)
    if distortion.saturation == 1 and distortion.hue == 0:
        return _look_up(image, last[first])
    return _look_up(_recolour(_look_up(image, first), distortion.saturation, distortion.hue), last)


def _recolour(image: Image, saturation: float, hue: float) -> Image:
    # the "full" conversion spreads the circle over 0..255, so hue wraps round by itself
    turned = (LEVELS + round(hue * 256 / 360)) % 256
    table = np.stack([turned, _clip(LEVELS * saturation), LEVELS], axis=-1)[None]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    return np.asarray(cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8)), cv2.COLOR_HSV2RGB_FULL))


def _table(levels: np.ndarray) -> UInt8[np.ndarray, " 256"]:
    return np.rint(levels).astype(np.uint8)


def _look_up(image: Image, table: UInt8[np.ndarray, " 256"]) -> Image:
    return image if np.array_equal(table, LEVELS) else np.asarray(cv2.LUT(image, table))


def _clip(levels: np.ndarray) -> np.ndarray:
    return np.clip(levels, 0, 255)
