"""Palettes of classes and instances."""

import colorsys

import numpy as np
from jaxtyping import UInt8
from numpy.typing import ArrayLike

Palette = UInt8[np.ndarray, "n 3"]
Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (30, 34, 42)
_INSTANCE_COLORS = (
    (238, 90, 54), (0, 158, 140), (74, 98, 224), (245, 166, 35), (155, 84, 200), (66, 184, 221),
    (226, 62, 130), (124, 179, 48), (252, 210, 68), (160, 104, 66), (28, 122, 190), (247, 140, 176),
)  # fmt: skip


def voc_palette(count: int = 256) -> Palette:
    """Return the PASCAL VOC color of every class index: bit k goes to bit 7 - k // 3 of channel k % 3."""
    index = np.arange(count)
    palette = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def instance_palette(count: int) -> Palette:
    """Return distinct colors for instances: twelve chosen ones, then hues spread by the golden ratio."""
    colors = list(_INSTANCE_COLORS[:count])
    for index in range(len(colors), count):
        hue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.55 + 0.15 * (index % 3), 0.95 - 0.12 * (index % 2))
        colors.append((round(255 * hue[0]), round(255 * hue[1]), round(255 * hue[2])))
    return np.array(colors, dtype=np.uint8).reshape(-1, 3)


def as_rgb(color: ArrayLike) -> Color:
    """Return a color as three Python integers."""
    red, green, blue = np.asarray(color).tolist()
    return red, green, blue


def contrast(color: Color) -> Color:
    """Return black or white, whichever reads better on the color."""
    return INK if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 150 else PAPER
