"""SSD's default boxes: pure geometry, computed for the feature maps at hand and never part of a state dict."""

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
    """The shapes at each cell of every head level, and how far apart the cells are.

    `steps` are the distances in pixels that a publication gives for images of `size` = (H, W); for images of any other
    size, and where they are None, the cells divide the image evenly.
    """

    shapes: tuple[tuple[AnchorShape, ...], ...]
    steps: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None

    @property
    def per_cell(self) -> tuple[int, ...]:
        """Number of anchors at each cell, by head level."""
        return tuple(len(shapes) for shapes in self.shapes)


def ssd_shapes(scales: Sequence[float], ratios: Sequence[Sequence[float]]) -> tuple[tuple[AnchorShape, ...], ...]:
    """SSD's rule: a square of the level's scale, one between it and the next, and for each ratio a wide and a tall box.

    scales: fractions of the image, one more than there are levels. ratios: by level, width / height above 1.
    """
    levels = []
    for (scale, following), level_ratios in zip(pairwise(scales), ratios, strict=True):
        between = sqrt(scale * following)
        shapes = [(scale, scale), (between, between)]
        for root in map(sqrt, level_ratios):
            shapes += [(scale * root, scale / root), (scale / root, scale * root)]
        levels.append(tuple(shapes))
    return tuple(levels)


def clip_shapes(levels: Sequence[Sequence[AnchorShape]]) -> tuple[tuple[AnchorShape, ...], ...]:
    """The shapes, none wider or taller than the image: torchvision's choice."""
    return tuple(tuple((min(width, 1.0), min(height, 1.0)) for width, height in level) for level in levels)


def dense_shapes(scales: Sequence[Sequence[float]], ratio: float = 2.0) -> tuple[tuple[AnchorShape, ...], ...]:
    """For every scale of every level a square, a wide and a tall box: close scales, so that small data gives positives."""
    root = sqrt(ratio)
    return tuple(
        tuple(shape for s in level for shape in ((s, s), (s * root, s / root), (s / root, s * root)))
        for level in scales
    )


@lru_cache(maxsize=32)
def make_anchors(
    layout: AnchorLayout, size: tuple[int, int], cells: tuple[tuple[int, int], ...], device: torch.device
) -> Float[Tensor, "a 4"]:
    """All anchors of an image of `size` = (H, W), xyxy in pixels, not clipped: level, row, column, shape.

    cells: (rows, columns) of each head level. The result is cached and shared: do not write into it.
    """
    published = layout.steps if layout.size == size else None
    with torch.inference_mode(False):  # a tensor cached in inference mode could not serve training afterwards
        levels = []
        for level, ((rows, columns), shapes) in enumerate(zip(cells, layout.shapes, strict=True)):
            step = (size[0] / rows, size[1] / columns) if published is None else (published[level],) * 2
            y = (torch.arange(rows, dtype=torch.float64) + 0.5) * step[0]
            x = (torch.arange(columns, dtype=torch.float64) + 0.5) * step[1]
            centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[:, :, None]
            half = torch.tensor(shapes, dtype=torch.float64) * torch.tensor([size[1], size[0]]) / 2
            levels.append(torch.cat([centre - half, centre + half], dim=-1).reshape(-1, 4))
        return torch.cat(levels).float().to(device)
