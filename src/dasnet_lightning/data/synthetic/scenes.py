"""Synthetic images of textured shapes on a textured background, with the visible mask of each shape.

The class is the shape alone. Color, texture, pose, proportions and overlap are drawn independently of it, so only the
outline separates the classes. All draws come from the generator that is passed in.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from dasnet_lightning.data.synthetic.shapes import (
    SHAPES,
    Field,
    PlacedShape,
    cut_shape,
    distinct_color,
    paint_texture,
    shade,
)

COMPACT_SHAPES = SHAPES[:3]
MAX_OBJECTS = 4
MIN_VISIBLE = 0.3  # of a shape's own area
MIN_PIXELS = 40
MIN_INSIDE = 0.6  # share of a shape's area inside the image
TRIES = 12
MIN_PAIR_AREA = 0.05  # of a shape of a pair, in image areas
PAIR_OCCLUSION = (0.08, 0.4)  # hidden share of the shape behind

Canvas = Float32[np.ndarray, "S S 3"]


@dataclass(frozen=True, eq=False)
class SyntheticScene:
    """Image with the label (1-based index in SHAPES) and the visible pixels of each shape."""

    image: UInt8[np.ndarray, "S S 3"]
    labels: tuple[int, ...]
    masks: tuple[Bool[np.ndarray, "S S"], ...]


def render_scene(rng: np.random.Generator, size: int) -> SyntheticScene:
    """Draw one image of `size` x `size` pixels with 1 to 4 shapes, the later ones in front."""
    base = rng.uniform(0.1, 0.9, 3)
    canvas = paint_texture(rng, base, (size, size))
    owner = np.zeros((size, size), dtype=np.uint8)
    labels: list[int] = []
    areas: list[float] = []
    colors = [base]
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        label = int(rng.integers(1, len(SHAPES) + 1))
        shape = _find_pose(rng, label, owner, areas, size)
        if shape is None:
            continue
        _paint(rng, canvas, shape, colors)
        labels.append(label)
        areas.append(shape.area)
        owner[shape.window][shape.inside] = len(labels)
    light = shade(rng, size)
    masks = tuple(owner == number for number in range(1, len(labels) + 1))
    return SyntheticScene(_to_pixels(rng, canvas, light), tuple(labels), masks)


def render_pair(rng: np.random.Generator, size: int) -> SyntheticScene:
    """Draw one image with two overlapping shapes of one class and of similar size, one in front of the other.

    Only compact shapes are used, because such pairs test which object a pixel belongs to, not how thin parts are segmented.
    """
    base = rng.uniform(0.1, 0.9, 3)
    label = int(rng.integers(1, len(COMPACT_SHAPES) + 1))
    for _ in range(100 * TRIES):
        back, front = (cut_shape(rng, SHAPES[label - 1], size) for _ in range(2))
        masks = [_full_mask(shape, size) for shape in (back, front)]
        if _is_pair((back, front), masks, size):
            break
    canvas, colors = paint_texture(rng, base, (size, size)), [base]
    for shape in (back, front):
        _paint(rng, canvas, shape, colors)
    return SyntheticScene(_to_pixels(rng, canvas), (label, label), (masks[0] & ~masks[1], masks[1]))


def _paint(rng: np.random.Generator, canvas: Canvas, shape: PlacedShape, colors: list[np.ndarray]) -> None:
    """Paint a shape in a color that differs from all others, and append the color to them."""
    colors.append(distinct_color(rng, colors))
    window = canvas[shape.window]
    window += shape.cover[:, :, None] * (paint_texture(rng, colors[-1], shape.cover.shape) - window)


def _to_pixels(rng: np.random.Generator, canvas: Canvas, light: Field | None = None) -> UInt8[np.ndarray, "S S 3"]:
    """Return the canvas as pixels, with light and camera noise."""
    noise = rng.normal(0, 0.02, (*canvas.shape[:2], 1)).astype(np.float32)
    lit = canvas + (noise if light is None else light[:, :, None] + noise)
    return (np.clip(lit, 0, 1) * 255).round().astype(np.uint8)


def _full_mask(shape: PlacedShape, size: int) -> Bool[np.ndarray, "S S"]:
    mask = np.zeros((size, size), dtype=bool)
    mask[shape.window] = shape.inside
    return mask


def _is_pair(shapes: tuple[PlacedShape, PlacedShape], masks: list[np.ndarray], size: int) -> bool:
    """Return whether both shapes are inside, large enough and similar, and the front one hides a suitable share."""
    back, front = shapes
    smaller, larger = sorted((back.area, front.area))
    whole = all(mask.sum() >= 0.95 * shape.area for mask, shape in zip(masks, shapes, strict=True))
    hidden = np.count_nonzero(masks[0] & masks[1]) / back.area
    large = smaller >= max(MIN_PAIR_AREA * size**2, larger / 2)
    return bool(whole and large and PAIR_OCCLUSION[0] <= hidden <= PAIR_OCCLUSION[1])


def _find_pose(
    rng: np.random.Generator, label: int, owner: UInt8[np.ndarray, "S S"], areas: list[float], size: int
) -> PlacedShape | None:
    """Find a pose of a shape in which it and those behind it stay visible enough; None if all tries fail."""
    for _ in range(TRIES):
        shape = cut_shape(rng, SHAPES[label - 1], size)
        if np.count_nonzero(shape.inside) < max(MIN_PIXELS, MIN_INSIDE * shape.area):
            continue
        hidden = np.bincount(owner[shape.window][shape.inside], minlength=len(areas) + 1)[1:]
        visible = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:] - hidden
        if all(pixels >= max(MIN_PIXELS, MIN_VISIBLE * area) for pixels, area in zip(visible, areas, strict=True)):
            return shape
    return None
