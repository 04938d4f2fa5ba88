"""Attention by boxes (paper section 2, eq. 1): features outside the boxes of a region become zero.

Nothing is cropped or resized. The backward pass multiplies by the same 0/1 map, so gradients reach the detector's
features only inside the boxes.
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
    """Compute the 0/1 map of each region: the union of its boxes on a grid of `feature_size` cells (eq. 1).

    Args:
        boxes: the boxes of all regions, xyxy in pixels of the image.
        region_index: the region of each box.
        num_regions: r, the number of maps to return.
        image_size: (H, W) of the image, in pixels.
        feature_size: (h, w) of the maps, in cells.
        rounding: "cover" keeps every cell that a box touches, at least one, as the reference code does. "inside" keeps
            the cells whose index lies in the closed interval [W_k xmin, W_k xmax], which is the literal eq. (1) and may
            keep none.
    """
    rows = box_cells(boxes[:, 1], boxes[:, 3], image_size[0], feature_size[0], rounding)
    columns = box_cells(boxes[:, 0], boxes[:, 2], image_size[1], feature_size[1], rounding)
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
    """Compute `box_attention` with scores: for each cell the best score of the region's boxes that cover it, else 0.

    Args:
        boxes: the boxes of all regions, xyxy in pixels of the image.
        scores: the score of each box.
        region_index: the region of each box.
        num_regions: r, the number of maps to return.
        image_size: (H, W) of the image, in pixels.
        feature_size: (h, w) of the maps, in cells.
    """
    rows = box_cells(boxes[:, 1], boxes[:, 3], image_size[0], feature_size[0], "cover")
    columns = box_cells(boxes[:, 0], boxes[:, 2], image_size[1], feature_size[1], "cover")
    cells = (rows[:, :, None] & columns[:, None, :]) * scores[:, None, None]
    zeros = scores.new_zeros((num_regions, *feature_size))
    return zeros.scatter_reduce(0, region_index[:, None, None].expand_as(cells), cells, "amax")


def attend(
    pyramid: Pyramid,
    regions: Regions,
    rounding: Rounding = "cover",
    weights: Float[Tensor, "r h w"] | None = None,
) -> Pyramid:
    """Return the pyramid of each region: the levels of its image, zero outside its boxes.

    The switches are those of the whole image.

    Args:
        pyramid: features of b images.
        regions: r regions of these images, boxes in input pixels.
        rounding: see `box_attention`.
        weights: soft attention inside the boxes, 0..1 for each pixel or cell of the image; averaged over the cells of
            each level. None means all ones, the plain attention by boxes.
    """

    def mask_level(level: Float[Tensor, "b c h w"]) -> Float[Tensor, "r c h w"]:
        size = (level.shape[2], level.shape[3])
        keep = box_attention(regions.boxes, regions.region_index, len(regions), pyramid.size, size, rounding)
        if weights is not None:
            keep = keep * F.adaptive_avg_pool2d(weights, size)
        return level[regions.image_index] * keep[:, None].to(level.dtype)

    switches = pyramid.switches
    return Pyramid(
        levels=tuple(mask_level(level) for level in pyramid.levels),
        strides=pyramid.strides,
        size=pyramid.size,
        switches=None if switches is None else tuple(codes[regions.image_index] for codes in switches),
    )


def box_cells(
    start: Float[Tensor, " n"], stop: Float[Tensor, " n"], image: int, cells: int, rounding: Rounding
) -> Bool[Tensor, "n cells"]:
    """Return which cells of a map each box keeps along one axis, as `box_attention`.

    Args:
        start: left or top edge of each box, in pixels.
        stop: right or bottom edge of each box, in pixels.
        image: width or height of the image, in pixels.
        cells: width or height of the map, in cells.
        rounding: see `box_attention`.
    """
    index = torch.arange(cells, device=start.device)
    # Multiplying first makes whole-pixel coordinates hit cell borders exactly.
    low, high = (start * cells / image)[:, None], (stop * cells / image)[:, None]
    if rounding == "inside":
        return (index >= low) & (index <= high)
    first = low.floor().clamp(0, cells - 1)
    last = torch.maximum(high.ceil().clamp(max=cells), first + 1)
    return (index >= first) & (index < last)
