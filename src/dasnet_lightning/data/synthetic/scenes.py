"""Pictures of textured shapes on textured ground, with the visible part of each shape: what the synthetic data is made of.

The class is the shape alone; colour, texture, pose, proportions and overlap are drawn independently of it, so nothing but
the outline tells the classes apart. All draws come from the generator that is passed in.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from dasnet_lightning.data.synthetic.shapes import (
    SHAPES,
    Field,
    PlacedShape,
    cut_shape,
    distinct_colour,
    paint_texture,
    shade,
)

COMPACT = SHAPES[:3]
MAX_OBJECTS = 4
LEAST_VISIBLE = 0.3  # of a shape's own area
LEAST_PIXELS = 40
LEAST_INSIDE = 0.6  # of a shape's area must lie inside the picture
TRIES = 12
PAIR_SIZE = 0.05  # the least area of a shape of a pair, in picture areas
PAIR_HIDDEN = (0.08, 0.4)  # how much of the one behind is hidden

Canvas = Float32[np.ndarray, "S S 3"]


@dataclass(frozen=True, eq=False)
class SyntheticScene:
    """A picture, and for each shape its label (1-based place in SHAPES) and its visible pixels."""

    image: UInt8[np.ndarray, "S S 3"]
    labels: tuple[int, ...]
    masks: tuple[Bool[np.ndarray, "S S"], ...]


def render_scene(rng: np.random.Generator, size: int) -> SyntheticScene:
    """Draw one picture of `size` pixels a side with 1 to 4 shapes, the later ones in front."""
    base = rng.uniform(0.1, 0.9, 3)
    canvas = paint_texture(rng, base, (size, size))
    owner = np.zeros((size, size), dtype=np.uint8)
    labels: list[int] = []
    areas: list[float] = []
    colours = [base]
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        label = int(rng.integers(1, len(SHAPES) + 1))
        piece = _place(rng, label, owner, areas, size)
        if piece is None:
            continue
        _put(rng, canvas, piece, colours)
        labels.append(label)
        areas.append(piece.area)
        owner[piece.window][piece.inside] = len(labels)
    light = shade(rng, size)
    masks = tuple(owner == place for place in range(1, len(labels) + 1))
    return SyntheticScene(_develop(rng, canvas, light), tuple(labels), masks)


def render_pair(rng: np.random.Generator, size: int) -> SyntheticScene:
    """Draw one picture with two overlapping shapes of one class, about equally large, one in front of the other.

    Only compact shapes: what such pairs ask is which object a pixel belongs to, not how thin a part is still seen.
    """
    base = rng.uniform(0.1, 0.9, 3)
    label = int(rng.integers(1, len(COMPACT) + 1))
    for _ in range(100 * TRIES):
        back, front = (cut_shape(rng, SHAPES[label - 1], size) for _ in range(2))
        masks = [_mask(piece, size) for piece in (back, front)]
        if _is_pair((back, front), masks, size):
            break
    canvas, colours = paint_texture(rng, base, (size, size)), [base]
    for piece in (back, front):
        _put(rng, canvas, piece, colours)
    return SyntheticScene(_develop(rng, canvas), (label, label), (masks[0] & ~masks[1], masks[1]))


def _put(rng: np.random.Generator, canvas: Canvas, piece: PlacedShape, colours: list[np.ndarray]) -> None:
    """Paint a shape in a colour unlike those before it, which it joins."""
    colours.append(distinct_colour(rng, colours))
    window = canvas[piece.window]
    window += piece.cover[:, :, None] * (paint_texture(rng, colours[-1], piece.cover.shape) - window)


def _develop(rng: np.random.Generator, canvas: Canvas, light: Field | None = None) -> UInt8[np.ndarray, "S S 3"]:
    """The canvas under a light and with a camera's noise, as pixels."""
    noise = rng.normal(0, 0.02, (*canvas.shape[:2], 1)).astype(np.float32)
    seen = canvas + (noise if light is None else light[:, :, None] + noise)
    return (np.clip(seen, 0, 1) * 255).round().astype(np.uint8)


def _mask(piece: PlacedShape, size: int) -> Bool[np.ndarray, "S S"]:
    mask = np.zeros((size, size), dtype=bool)
    mask[piece.window] = piece.inside
    return mask


def _is_pair(pieces: tuple[PlacedShape, PlacedShape], masks: list[np.ndarray], size: int) -> bool:
    """Whether both shapes lie inside, are large enough and alike, and the front one hides enough but not too much."""
    back, front = pieces
    least, most = sorted((back.area, front.area))
    whole = all(mask.sum() >= 0.95 * piece.area for mask, piece in zip(masks, pieces, strict=True))
    hidden = np.count_nonzero(masks[0] & masks[1]) / back.area
    large = least >= max(PAIR_SIZE * size**2, most / 2)
    return bool(whole and large and PAIR_HIDDEN[0] <= hidden <= PAIR_HIDDEN[1])


def _place(
    rng: np.random.Generator, label: int, owner: UInt8[np.ndarray, "S S"], areas: list[float], size: int
) -> PlacedShape | None:
    """Find a place for a shape where it and those behind it stay visible enough; None where there is none."""
    for _ in range(TRIES):
        piece = cut_shape(rng, SHAPES[label - 1], size)
        seen = np.count_nonzero(piece.inside)
        if seen < max(LEAST_PIXELS, LEAST_INSIDE * piece.area):
            continue
        lost = np.bincount(owner[piece.window][piece.inside], minlength=len(areas) + 1)[1:]
        left = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:] - lost
        if all(rest >= max(LEAST_PIXELS, LEAST_VISIBLE * area) for rest, area in zip(left, areas, strict=True)):
            return piece
    return None
