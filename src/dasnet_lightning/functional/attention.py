"""Attention by boxes (paper section 2, eq. 1): features outside the boxes of a region become zero, nothing moves.

The backward pass multiplies by the same 0/1 map, so gradients reach the detector's features only inside the boxes.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.types import Pyramid, Regions

Rounding = Literal["cover", "inside"]


def box_attention(
    boxes: Float[Tensor, "n 4"],
    region_index: Int64[Tensor, " n"],
    num_regions: int,
    image_size: tuple[int, int],
    feature_size: tuple[int, int],
    rounding: Rounding = "cover",
) -> Float[Tensor, "r h w"]:
    """The 0/1 map of each region: the union of its boxes on a grid of `feature_size` cells (eq. 1).

    rounding: "cover" keeps every cell that a box touches, at least one (the reference code); "inside" keeps the cells
    whose index lies in the closed interval [W_k xmin, W_k xmax] (the formula's letter; may keep none).
    """
    rows = _cells(boxes[:, 1], boxes[:, 3], image_size[0], feature_size[0], rounding)
    columns = _cells(boxes[:, 0], boxes[:, 2], image_size[1], feature_size[1], rounding)
    cells = (rows[:, :, None] & columns[:, None, :]).to(boxes.dtype)
    union = cells.new_zeros((num_regions, *feature_size)).index_add(0, region_index, cells)
    return union.clamp(max=1)


def box_scores(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    region_index: Int64[Tensor, " n"],
    num_regions: int,
    image_size: tuple[int, int],
    feature_size: tuple[int, int],
) -> Float[Tensor, "r h w"]:
    """For each cell the best score of the region's boxes that cover it, 0 outside: `box_attention` with scores."""
    rows = _cells(boxes[:, 1], boxes[:, 3], image_size[0], feature_size[0], "cover")
    columns = _cells(boxes[:, 0], boxes[:, 2], image_size[1], feature_size[1], "cover")
    cells = (rows[:, :, None] & columns[:, None, :]) * scores[:, None, None]
    nothing = scores.new_zeros((num_regions, *feature_size))
    return nothing.scatter_reduce(0, region_index[:, None, None].expand_as(cells), cells, "amax")


def attend(
    pyramid: Pyramid,
    regions: Regions,
    rounding: Rounding = "cover",
    weights: Float[Tensor, "r h w"] | None = None,
) -> Pyramid:
    """The pyramid of each region: its image's levels, zero outside its boxes; switches are those of the whole image.

    weights: 0..1 for each pixel or cell of the image, averaged over each level's cells: a soft attention inside the boxes.
    All ones is the attention by boxes itself.
    """

    def masked(level: Float[Tensor, "b c h w"]) -> Float[Tensor, "r c h w"]:
        size = (level.shape[2], level.shape[3])
        keep = box_attention(regions.boxes, regions.region_index, len(regions), pyramid.size, size, rounding)
        if weights is not None:
            keep = keep * F.adaptive_avg_pool2d(weights, size)
        return level[regions.image_index] * keep[:, None].to(level.dtype)

    switches = pyramid.switches
    return Pyramid(
        levels=tuple(masked(level) for level in pyramid.levels),
        strides=pyramid.strides,
        size=pyramid.size,
        switches=None if switches is None else tuple(codes[regions.image_index] for codes in switches),
    )


def _cells(
    start: Float[Tensor, " n"], stop: Float[Tensor, " n"], image: int, cells: int, rounding: Rounding
) -> Bool[Tensor, "n cells"]:
    index = torch.arange(cells, device=start.device)
    # multiply first: whole-pixel coordinates then hit cell borders exactly
    low, high = (start * cells / image)[:, None], (stop * cells / image)[:, None]
    if rounding == "inside":
        return (index >= low) & (index <= high)
    first = low.floor().clamp(0, cells - 1)
    last = torch.maximum(high.ceil().clamp(max=cells), first + 1)
    return (index >= first) & (index < last)
