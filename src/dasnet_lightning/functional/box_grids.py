"""Grids of a fixed number of cells over boxes: features in, scores out.

The window of a box is the box widened on each side. A grid divides the window of every box into the same number of cells,
so large and small objects are decoded at one scale. The grid of a window is axis-aligned, so bilinear sampling is a product
with one small matrix for the rows and one for the columns. All boxes of a batch take part in the same two products; no
shape depends on the values of the boxes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dasnet_lightning.functional.attention import Rounding, box_cells
from dasnet_lightning.types import Regions

SAMPLES = 2  # along each side of a cell, as RoIAlign
MIN_EXTENT = 1e-3  # pixels; avoids a division by zero for a box without extent
NEVER = -30.0  # logit of a pixel outside of every window


def box_windows_of(boxes: Float[Tensor, "n 4"], margin: float) -> Float[Tensor, "n 4"]:
    """Return the windows of boxes: each side moved outward by `margin` times the extent of the box. Not clipped."""
    extent = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes[:, :2] - margin * extent, boxes[:, 2:] + margin * extent], dim=1)


def sample_attended(
    level: Float[Tensor, "b c h w"],
    regions: Regions,
    image_size: tuple[int, int],
    cells: int,
    margin: float,
    rounding: Rounding = "cover",
) -> Float[Tensor, "n c k k"]:
    """Sample an attended level on a grid of the window of each box (paper section 2, eq. 1, then RoIAlign).

    The features outside the box count as zero *before* they are sampled: nothing beyond the box reaches the result. Each
    cell is the mean of 2 x 2 bilinear samples.

    Args:
        level: features of b images.
        regions: the n boxes, in input pixels; each box is attended to alone.
        image_size: (H, W) of the input.
        cells: k, cells along each side of the grid.
        margin: see `box_windows_of`.
        rounding: see `box_attention`.
    """
    boxes, image = regions.boxes, regions.image_index[regions.region_index]
    windows = box_windows_of(boxes, margin)
    height, width, channels = level.shape[2], level.shape[3], level.shape[1]
    rows = _sample_weights(windows[:, 1], windows[:, 3], image_size[0], height, cells)
    columns = _sample_weights(windows[:, 0], windows[:, 2], image_size[1], width, cells)
    rows = rows * box_cells(boxes[:, 1], boxes[:, 3], image_size[0], height, rounding)[:, None]
    columns = columns * box_cells(boxes[:, 0], boxes[:, 2], image_size[1], width, rounding)[:, None]
    by_row = level.permute(0, 2, 3, 1).reshape(-1, height, width * channels)
    rows, columns = rows.to(level.dtype), columns.to(level.dtype)
    # a single image is not copied for each of its boxes
    sampled = rows.reshape(-1, height) @ by_row[0] if len(by_row) == 1 else torch.bmm(rows, by_row[image])
    return torch.matmul(columns[:, None], sampled.reshape(-1, cells, width, channels)).permute(0, 3, 1, 2)


def sample_masks(masks: Float[Tensor, "n H W"], windows: Float[Tensor, "n 4"], cells: int) -> Float[Tensor, "n k k"]:
    """Sample one map for each window on its grid; beyond the map it is 0.

    Args:
        masks: maps in input pixels.
        windows: xyxy in input pixels.
        cells: k.
    """
    height, width = masks.shape[1:]
    rows = _sample_weights(windows[:, 1], windows[:, 3], height, height, cells)
    columns = _sample_weights(windows[:, 0], windows[:, 2], width, width, cells)
    return torch.bmm(torch.bmm(rows, masks.to(rows.dtype)), columns.transpose(1, 2))


def _sample_weights(
    start: Float[Tensor, " n"], stop: Float[Tensor, " n"], image: int, length: int, cells: int
) -> Float[Tensor, "n k l"]:
    """Return the weight of each of the `length` cells of a map in each cell of the grids, along one axis.

    Args:
        start: first edge of each window, in pixels.
        stop: last edge of each window, in pixels.
        image: length of the image, in pixels.
        length: length of the map, in cells.
        cells: k.
    """
    share = (torch.arange(cells * SAMPLES, device=start.device) + 0.5) / (cells * SAMPLES)
    position = (start[:, None] + (stop - start)[:, None] * share) * length / image
    inside = (position >= 0) & (position <= length)
    weights = _linear_weights((position - 0.5).clamp(0, length - 1), length) * inside[:, :, None]
    return weights.reshape(-1, cells, SAMPLES, length).mean(dim=2)


def _linear_weights(position: Float[Tensor, "*n"], length: int) -> Float[Tensor, "*n l"]:
    """Return the weights of linear interpolation between `length` cells at positions in 0..length-1."""
    return (1 - (position[..., None] - torch.arange(length, device=position.device)).abs()).clamp(min=0)


def read_grid(
    scores: Float[Tensor, "g g"], window: Float[Tensor, "4"], pixels: tuple[int, int, int, int]
) -> Float[Tensor, "hb wb"]:
    """Interpolate the scores of a grid bilinearly at the centers of an image's pixels.

    Args:
        scores: values of the grid's cells.
        window: what the grid covers, xyxy in pixels of the image.
        pixels: the pixels to read, x0, y0, x1, y1, the last two exclusive. Those beyond the window read its nearest cell.
    """
    x0, y0, x1, y1 = pixels
    rows = _pixel_weights(window[None, 1], window[None, 3], y0, y1, scores.shape[0])[0]
    columns = _pixel_weights(window[None, 0], window[None, 2], x0, x1, scores.shape[1])[0]
    with torch.autocast(scores.device.type, enabled=False):  # pixels at the border of a mask need all digits
        return rows @ scores.float() @ columns.T


def paste_grids(
    scores: Float[Tensor, "n g g"], windows: Float[Tensor, "n 4"], regions: Regions, size: tuple[int, int]
) -> Float[Tensor, "r H W"]:
    """Return the best score of the boxes of each region in the pixels of an image; `NEVER` outside of their windows.

    Args:
        scores: logits on the grid of each box.
        windows: what the grids cover, xyxy in pixels of an image of `size`.
        regions: tells the region of each box.
        size: (H, W) of the image.
    """
    height, width = size
    rows = _pixel_weights(windows[:, 1], windows[:, 3], 0, height, scores.shape[1])
    columns = _pixel_weights(windows[:, 0], windows[:, 2], 0, width, scores.shape[2])
    pasted = torch.bmm(torch.bmm(rows, scores.float()), columns.transpose(1, 2))
    y, x = torch.arange(height, device=scores.device) + 0.5, torch.arange(width, device=scores.device) + 0.5
    in_rows = (y >= windows[:, 1, None]) & (y <= windows[:, 3, None])
    in_columns = (x >= windows[:, 0, None]) & (x <= windows[:, 2, None])
    pasted = pasted.masked_fill(~(in_rows[:, :, None] & in_columns[:, None, :]), NEVER)
    index = regions.region_index[:, None, None].expand_as(pasted)
    return pasted.new_full((len(regions), height, width), NEVER).scatter_reduce(0, index, pasted, "amax")


def _pixel_weights(
    start: Float[Tensor, " n"], stop: Float[Tensor, " n"], first: int, last: int, cells: int
) -> Float[Tensor, "n p g"]:
    """Return the weight of each cell of the grids in the pixels `first`..`last` - 1, along one axis."""
    centers = torch.arange(first, max(first, last), device=start.device) + 0.5
    extent = (stop - start).clamp(min=MIN_EXTENT)[:, None]
    position = (centers - start[:, None]) / extent * cells - 0.5
    return _linear_weights(position.clamp(0, cells - 1), cells)


def prior_channels(cells: int, margin: float, device: torch.device | None = None) -> Float[Tensor, "3 k k"]:
    """Return what a grid knows of its box: x and y, -1..1 from edge to edge of the box, and 1 inside the box, else 0.

    Args:
        cells: k.
        margin: see `box_windows_of`.
        device: where the result is.
    """
    position = ((torch.arange(cells, device=device) + 0.5) / cells * 2 - 1) * (1 + 2 * margin)
    x, y = position.expand(cells, cells), position[:, None].expand(cells, cells)
    return torch.stack([x, y, ((x.abs() <= 1) & (y.abs() <= 1)).to(x.dtype)])
