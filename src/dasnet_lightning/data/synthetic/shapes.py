"""Shapes rasterized in random poses, and the colors and textures that fill them.

All draws come from the generator that is passed in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image

SHAPES = ("disc", "square", "triangle", "star", "ring", "cross")
SCALES = (0.15, 0.65)  # outer diameter, in image sizes
CONTRAST = 0.35  # distance between the mean colors of a shape and of all others (RGB, 0..1)
COLOR_TRIES = 12

Field = Float32[np.ndarray, "h w"]


@dataclass(frozen=True, eq=False)
class PlacedShape:
    """Shape before it is painted.

    Attributes:
        window: its rows and columns in the image.
        cover: soft coverage in the window, 0..1.
        inside: mask in the window.
        area: area of the whole shape in pixels, also outside the image.
    """

    window: tuple[slice, slice]
    cover: Field
    inside: Bool[np.ndarray, "h w"]
    area: float


def cut_shape(rng: np.random.Generator, shape: str, size: int) -> PlacedShape:
    """Draw a pose (position, scale, proportions, shear, rotation) and rasterize the shape in it."""
    radius = rng.uniform(*SCALES) * size / 2
    stretch = float(np.exp(np.clip(rng.normal(0, 0.18), -0.35, 0.35)))
    shear, angle = rng.uniform(-0.25, 0.25), rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = radius * rotation @ np.array([[stretch, shear], [0, 1 / stretch]])
    center = rng.uniform(0.1 * size, 0.9 * size, 2)
    reach = np.linalg.norm(matrix, axis=1) * 1.1 + 1  # every outline lies within 1.1 of the center
    x0, y0 = np.maximum(np.floor(center - reach), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(center + reach), size).astype(int)
    inverse = np.linalg.inv(matrix).astype(np.float32)
    dx = (np.arange(x0, x1) + 0.5 - center[0]).astype(np.float32)[None, :]
    dy = (np.arange(y0, y1) + 0.5 - center[1]).astype(np.float32)[:, None]
    level, unit_area = OUTLINES[shape]
    distance = level(inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy)
    cover = np.clip(0.5 - distance * np.float32(radius), 0, 1)  # an edge about one pixel wide
    return PlacedShape((slice(y0, y1), slice(x0, x1)), cover, cover >= 0.5, unit_area * radius**2)


def _disc(u: Field, v: Field) -> Field:
    return np.sqrt(u * u + v * v) - 1


def _ring(u: Field, v: Field) -> Field:
    return np.abs(np.sqrt(u * u + v * v) - 0.75) - 0.25


def _square(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.8)


def _triangle(u: Field, v: Field) -> Field:
    return np.maximum(-v, np.float32(0.866) * np.abs(u) + np.float32(0.5) * v) - np.float32(0.55)


def _cross(u: Field, v: Field) -> Field:
    low, high = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return np.maximum(low - np.float32(0.3), high - 1)


def _star(u: Field, v: Field) -> Field:
    sector = np.float32(2 * np.pi / 5)
    angle = np.abs(np.mod(np.arctan2(u, v), sector) - sector / 2)  # 0 between two points, sector / 2 at a point
    radius = np.sqrt(u * u + v * v)
    # the straight edge from the inner corner (radius 0.45, angle 0) to the point (radius 1.1, angle sector / 2)
    tip = 1.1 * np.cos(np.pi / 5), 1.1 * np.sin(np.pi / 5)
    edge = np.array([tip[0] - 0.45, tip[1]])
    normal = (np.array([edge[1], -edge[0]]) / np.hypot(*edge)).astype(np.float32)
    return normal[0] * (radius * np.cos(angle) - np.float32(0.45)) + normal[1] * radius * np.sin(angle)


# level function (negative inside) and area at radius 1
OUTLINES: dict[str, tuple[Callable[[Field, Field], Field], float]] = {
    "disc": (_disc, np.pi),
    "square": (_square, 1.6**2),
    "triangle": (_triangle, 3 * 3**0.5 * 0.55**2),
    "star": (_star, 5 * 0.45 * 1.1 * np.sin(np.pi / 5)),
    "ring": (_ring, np.pi * (1 - 0.5**2)),
    "cross": (_cross, 4 * 0.6 - 0.6**2),
}


def paint_texture(rng: np.random.Generator, color: np.ndarray, shape: tuple[int, int]) -> Float32[np.ndarray, "h w 3"]:
    """Return a texture between two colors whose mean is `color`."""
    difference = (rng.uniform(0.04, 0.2) * _unit_vector(rng)).astype(np.float32)
    field = TEXTURES[int(rng.integers(len(TEXTURES)))](rng, shape)  # -1..1
    return color.astype(np.float32) + field[:, :, None] * difference


def _gradient(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    wave = _ramp(rng, shape)
    return wave / max(float(np.abs(wave).max()), 1e-6)


def _stripes(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    return np.sin(_ramp(rng, shape) * np.float32(2 * np.pi / rng.uniform(4, 24)) + np.float32(rng.uniform(0, 6)))


def _checks(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    return np.sign(_stripes(rng, shape)) * np.sign(_stripes(rng, shape))


def _blobs(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    cell = rng.uniform(4, 20)
    coarse = rng.uniform(-1.5, 1.5, [int(side / cell) + 2 for side in shape]).astype(np.float32)
    smooth = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.clip(np.asarray(smooth), -1, 1)


def _speckle(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    return rng.random(shape, dtype=np.float32) * 2 - 1


TEXTURES: tuple[Callable[[np.random.Generator, tuple[int, int]], Field], ...] = (
    _gradient,
    _stripes,
    _checks,
    _blobs,
    _speckle,
)


def _ramp(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """Return the coordinate along a random direction, in pixels, 0 at the center."""
    angle = rng.uniform(0, 2 * np.pi)
    across = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(shape[1] / 2)
    down = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(shape[0] / 2)
    return np.float32(np.cos(angle)) * across + np.float32(np.sin(angle)) * down


def shade(rng: np.random.Generator, size: int) -> Field:
    """Return light that changes slowly over the whole image."""
    return _ramp(rng, (size, size)) * np.float32(rng.uniform(0, 0.15) / size)


def distinct_color(rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
    """Draw a color that differs clearly from the others: the first with enough contrast, else the best of some draws."""
    best, best_distance = others[0], -1.0
    for _ in range(COLOR_TRIES):
        color = rng.uniform(0.05, 0.95, 3)
        distance = min(float(np.linalg.norm(color - other)) for other in others)
        if distance > best_distance:
            best, best_distance = color, distance
        if best_distance >= CONTRAST:
            break
    return best


def _unit_vector(rng: np.random.Generator) -> np.ndarray:
    direction = rng.normal(size=3)
    return direction / np.linalg.norm(direction)
