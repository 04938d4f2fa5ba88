"""SSD's anchors (default boxes), computed from the size of the feature maps; they are not part of a state dict."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

AnchorShape = tuple[float, float]  # width and height as fractions of the image


@dataclass(frozen=True)
class AnchorLayout:
    """The anchor shapes of each head level and the distances of its cells.

    Attributes:
        shapes: anchor shapes at each cell, by head level.
        steps: distance of the cells of each level in pixels, as published for images of `size`. If it is None, or for
            images of any other size, the cells divide the image evenly.
        size: (H, W) of the images that `steps` are for.
    """

    shapes: tuple[tuple[AnchorShape, ...], ...]
    steps: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None

    @property
    def per_cell(self) -> tuple[int, ...]:
        """Number of anchors of each cell, by head level."""
        return tuple(len(shapes) for shapes in self.shapes)


def ssd_shapes(scales: Sequence[float], ratios: Sequence[Sequence[float]]) -> tuple[tuple[AnchorShape, ...], ...]:
    """Compute SSD's anchor shapes of each level.

    They are a square of the level's scale, a square between it and the next scale, and a wide and a tall box per ratio.

    Args:
        scales: fractions of the image, one more than there are levels.
        ratios: width / height above 1, by level.
    """
    levels = []
    for (scale, next_scale), level_ratios in zip(pairwise(scales), ratios, strict=True):
        between = sqrt(scale * next_scale)
        shapes = [(scale, scale), (between, between)]
        for root in map(sqrt, level_ratios):
            shapes += [(scale * root, scale / root), (scale / root, scale * root)]
        levels.append(tuple(shapes))
    return tuple(levels)


def clip_shapes(levels: Sequence[Sequence[AnchorShape]]) -> tuple[tuple[AnchorShape, ...], ...]:
    """Clip shapes to the size of the image, as torchvision does."""
    return tuple(tuple((min(width, 1.0), min(height, 1.0)) for width, height in level) for level in levels)


def dense_shapes(scales: Sequence[Sequence[float]], ratio: float = 2.0) -> tuple[tuple[AnchorShape, ...], ...]:
    """Compute a square, a wide and a tall box for each scale of each level.

    Closely spaced scales match more anchors, so that small data sets have enough positives.

    Args:
        scales: fractions of the image, by level.
        ratio: width / height of the wide box.
    """
    root = sqrt(ratio)
    return tuple(
        tuple(shape for s in level for shape in ((s, s), (s * root, s / root), (s / root, s * root)))
        for level in scales
    )


@lru_cache(maxsize=32)
def make_anchors(
    layout: AnchorLayout, size: tuple[int, int], cells: tuple[tuple[int, int], ...], device: torch.device
) -> Float[Tensor, "a 4"]:
    """Compute all anchors of an image, xyxy in pixels, ordered by level, row, column and shape; not clipped.

    The result is cached and shared: do not write into it.

    Args:
        layout: shapes and steps.
        size: (H, W) of the image.
        cells: (rows, columns) of each head level.
        device: device of the anchors.
    """
    published_steps = layout.steps if layout.size == size else None
    with torch.inference_mode(False):  # a tensor that is cached in inference mode could not be used in training
        levels = []
        for level, ((rows, columns), shapes) in enumerate(zip(cells, layout.shapes, strict=True)):
            step = (size[0] / rows, size[1] / columns) if published_steps is None else (published_steps[level],) * 2
            y = (torch.arange(rows, dtype=torch.float64) + 0.5) * step[0]
            x = (torch.arange(columns, dtype=torch.float64) + 0.5) * step[1]
            center = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[:, :, None]
            half = torch.tensor(shapes, dtype=torch.float64) * torch.tensor([size[1], size[0]]) / 2
            levels.append(torch.cat([center - half, center + half], dim=-1).reshape(-1, 4))
        return torch.cat(levels).float().to(device)
