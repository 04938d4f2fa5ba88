"""Position-sensitive score maps (paper section 5, after FCIS).

A box has k x k cells, and each cell has an *inside* and an *outside* map. A pixel is read from the pair of its cell, so two
objects that share pixels can get two masks. Scores are copied, not pooled.

The channel of a map is 2 * (row * k + column) + {0 inside, 1 outside}.

`assemble` is the definition for one box. `read_boxes` returns the same numbers for many boxes at chosen pixels; it also
reads maps that are coarser than the image, without making them at full size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.functional.boxes import pixel_windows

INSIDE, OUTSIDE = 0, 1
MIN_EXTENT = 1e-6  # pixels; avoids a division by zero for a box without extent


def cells_of(
    pixels: Int64[Tensor, "n g"], start: Float[Tensor, " n"], stop: Float[Tensor, " n"], k: int
) -> Int64[Tensor, "n g"]:
    """Return which of the k cells of its box the center of each pixel lies in, along one axis.

    A pixel beyond the box has the nearest cell.

    Args:
        pixels: rows or columns of the pixels read in each of n boxes.
        start: top or left edge of each box, in pixels.
        stop: bottom or right edge of each box, in pixels.
        k: cells along one side of a box.
    """
    extent = (stop - start).clamp(min=MIN_EXTENT)[:, None]
    return (k * (pixels + 0.5 - start[:, None]) / extent).floor().clamp(0, k - 1).long()


def assemble(
    score_maps: Float[Tensor, "c H W"],
    box: Float[Tensor, "4"],
    k: int,
) -> Float[Tensor, "2 hb wb"]:
    """Return the inside (channel 0) and outside (1) scores of the pixels of a box.

    The pixels are floor(x0)..ceil(x1), floor(y0)..ceil(y1), clipped to the image; none for a box outside of it.

    Args:
        score_maps: c = 2 k k maps in image pixels.
        box: xyxy in pixels.
        k: cells along one side of a box.
    """
    x0, y0, x1, y1 = pixel_windows(box[None], (score_maps.shape[1], score_maps.shape[2]))[0].tolist()
    rows = torch.arange(y0, max(y0, y1), device=box.device)
    columns = torch.arange(x0, max(x0, x1), device=box.device)
    row_cells = cells_of(rows[None], box[None, 1], box[None, 3], k)[0]
    column_cells = cells_of(columns[None], box[None, 0], box[None, 2], k)[0]
    maps = score_maps.unflatten(0, (k, k, 2))
    # A slice between index tensors moves the indexed axes to the front: hb, wb, 2.
    scores = maps[row_cells[:, None], column_cells[None, :], :, rows[:, None], columns[None, :]]
    return scores.permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class PixelGrid:
    """Rows and columns of the pixels that are read in each of n boxes.

    Attributes:
        rows: rows of each box, padded to the longest.
        columns: columns of each box, padded to the longest.
        row_valid: False for padding of `rows`.
        column_valid: False for padding of `columns`.
    """

    rows: Int64[Tensor, "n g"]
    columns: Int64[Tensor, "n g2"]
    row_valid: Bool[Tensor, "n g"]
    column_valid: Bool[Tensor, "n g2"]

    @property
    def valid(self) -> Bool[Tensor, "n g g2"]:
        """Whether each pixel of the grid belongs to its box."""
        return self.row_valid[:, :, None] & self.column_valid[:, None, :]


def pixel_grid(
    boxes: Float[Tensor, "n 4"],
    size: tuple[int, int],
    max_lines: int | None = None,
    offset: Float[Tensor, "n 2"] | None = None,
) -> PixelGrid:
    """Return all pixels of each box, or those of at most `max_lines` rows and columns, evenly spread.

    Args:
        boxes: xyxy in pixels.
        size: (H, W) of the image.
        max_lines: limit on the rows and on the columns; None for all.
        offset: vertical and horizontal position inside each stride, 0..1. Drawn uniformly, it makes every pixel of a box
            equally probable. None means the middle.
    """
    windows = pixel_windows(boxes, size)
    if offset is None:
        offset = torch.full_like(boxes[:, :2], 0.5)
    rows, row_valid = _spread(windows[:, 1], windows[:, 3], max_lines, offset[:, 0])
    columns, column_valid = _spread(windows[:, 0], windows[:, 2], max_lines, offset[:, 1])
    return PixelGrid(rows, columns, row_valid, column_valid)


def _spread(
    start: Int64[Tensor, " n"], stop: Int64[Tensor, " n"], max_lines: int | None, offset: Float[Tensor, " n"]
) -> tuple[Int64[Tensor, "n g"], Bool[Tensor, "n g"]]:
    """Return the rows (or columns) from `start` to `stop`, at most `max_lines`, and which entries are not padding."""
    length = (stop - start).clamp(min=0)
    longest = max(1, int(length.max())) if len(length) else 1
    count = longest if max_lines is None else min(max_lines, longest)
    step = torch.arange(count, device=start.device)
    dense = start[:, None] + step
    sparse = start[:, None] + ((step + offset[:, None]) * length[:, None] / count).floor().long()
    fits = (length <= count)[:, None]
    valid = torch.where(fits, step < length[:, None], length[:, None] > 0)
    lines = torch.where(fits, dense, torch.minimum(sparse, stop[:, None] - 1))
    return lines.masked_fill(~valid, 0), valid


def read_boxes(
    score_maps: Float[Tensor, "r c h w"],
    boxes: Float[Tensor, "n 4"],
    region_index: Int64[Tensor, " n"],
    grid: PixelGrid,
    size: tuple[int, int],
    k: int,
) -> Float[Tensor, "n 2 g g2"]:
    """Return the inside and outside scores of each box at the pixels of its grid; invalid entries are arbitrary.

    Args:
        score_maps: c = 2 k k maps of each region. Maps of another size than the image are read as if F.interpolate
            (bilinear, align_corners=False) had resized them to it.
        boxes: xyxy in pixels of the image.
        region_index: the region of each box.
        grid: the pixels to read in each box.
        size: (H, W) of the image.
        k: cells along one side of a box.
    """
    height, width = score_maps.shape[2:]
    flat = score_maps.permute(0, 2, 3, 1).reshape(-1, 2)
    cells = (
        cells_of(grid.rows, boxes[:, 1], boxes[:, 3], k)[:, :, None] * k
        + cells_of(grid.columns, boxes[:, 0], boxes[:, 2], k)[:, None, :]
    )
    map_index = region_index[:, None, None]

    def read(rows: Int64[Tensor, "n g"], columns: Int64[Tensor, "n g2"]) -> Float[Tensor, "n g g2 2"]:
        index = (map_index * height + rows[:, :, None]) * width + columns[:, None, :]
        return F.embedding(index * (k * k) + cells, flat)

    return read_bilinear(read, grid, size, (height, width))


def read_bilinear(
    read: Callable[[Int64[Tensor, "n g"], Int64[Tensor, "n g2"]], Float[Tensor, "n g g2 2"]],
    grid: PixelGrid,
    size: tuple[int, int],
    cells: tuple[int, int],
) -> Float[Tensor, "n 2 g g2"]:
    """Interpolate maps of `cells` = (h, w) at the pixels of the grid, in an image of `size` = (H, W).

    Args:
        read: returns the maps' values at given rows and columns of cells.
        grid: the pixels of each box.
        size: (H, W) of the image.
        cells: (h, w) of the maps.
    """
    top, bottom, down = neighbors(grid.rows, size[0], cells[0])
    left, right, across = neighbors(grid.columns, size[1], cells[1])
    if cells == size:
        return read(top, left).permute(0, 3, 1, 2)
    corner = read(top, left)
    down, across = down[:, :, None, None].to(corner.dtype), across[:, None, :, None].to(corner.dtype)
    upper = torch.lerp(corner, read(top, right), across)
    lower = torch.lerp(read(bottom, left), read(bottom, right), across)
    return torch.lerp(upper, lower, down).permute(0, 3, 1, 2)


def neighbors(
    pixels: Int64[Tensor, "n g"], size: int, cells: int
) -> tuple[Int64[Tensor, "n g"], Int64[Tensor, "n g"], Float[Tensor, "n g"]]:
    """Return the two cells that linear interpolation reads for each pixel, and the weight of the second.

    Args:
        pixels: rows or columns of the image.
        size: height or width of the image.
        cells: height or width of the map.
    """
    position = ((pixels + 0.5) * cells / size - 0.5).clamp(min=0)
    first = position.floor().long().clamp(max=cells - 1)
    return first, (first + 1).clamp(max=cells - 1), position - first


def instance_scores(scores: Float[Tensor, "n 2 g g2"], valid: Bool[Tensor, "n g g2"]) -> Float[Tensor, " n"]:
    """Compute the logit of each box: the mean over its pixels of max(inside, outside); 0 for a box without pixels."""
    best = scores.float().amax(dim=1) * valid
    return best.sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)


def inside_logits(scores: Float[Tensor, "n 2 g g2"]) -> Float[Tensor, "n g g2"]:
    """Compute the logit of each pixel; its sigmoid equals the softmax over (inside, outside)."""
    return scores[:, INSIDE].float() - scores[:, OUTSIDE].float()
