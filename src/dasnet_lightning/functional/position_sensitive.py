"""Position-sensitive score maps (paper section 5, after FCIS): which pair of maps answers for a pixel depends on where in
the box the pixel lies, so two objects that share pixels can get two masks.

There are 2 k k maps: for each of the k x k cells of a box an *inside* and an *outside* map, channel = 2 * (row * k +
column) + {0 inside, 1 outside}. Assembling copies: nothing is pooled. `assemble` is the definition for one box;
`read_boxes` reads the same numbers for many boxes at chosen pixels, also from maps that are coarser than the image,
without making the maps at full size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.functional.boxes import pixel_windows

INSIDE, OUTSIDE = 0, 1
SMALLEST = 1e-6  # pixels; a box without extent must not divide by zero


def cells_of(
    pixels: Int64[Tensor, "n g"], start: Float[Tensor, " n"], stop: Float[Tensor, " n"], k: int
) -> Int64[Tensor, "n g"]:
    """Which of the k cells of its box each pixel's centre lies in, along one axis; beyond the box the nearest cell."""
    extent = (stop - start).clamp(min=SMALLEST)[:, None]
    return (k * (pixels + 0.5 - start[:, None]) / extent).floor().clamp(0, k - 1).long()


def assemble(
    score_maps: Float[Tensor, "c H W"],
    box: Float[Tensor, "4"],
    k: int,
) -> Float[Tensor, "2 hb wb"]:
    """Inside (channel 0) and outside (1) scores of the pixels of a box, from c = 2 k k maps in image pixels.

    The window is floor(x0)..ceil(x1), floor(y0)..ceil(y1), clipped to the image; it is empty for a box outside.
    """
    x0, y0, x1, y1 = pixel_windows(box[None], (score_maps.shape[1], score_maps.shape[2]))[0].tolist()
    rows = torch.arange(y0, max(y0, y1), device=box.device)
    columns = torch.arange(x0, max(x0, x1), device=box.device)
    row_cells = cells_of(rows[None], box[None, 1], box[None, 3], k)[0]
    column_cells = cells_of(columns[None], box[None, 0], box[None, 2], k)[0]
    maps = score_maps.unflatten(0, (k, k, 2))
    # the slice keeps its axis between the indices, which puts them first: hb, wb, 2
    picked = maps[row_cells[:, None], column_cells[None, :], :, rows[:, None], columns[None, :]]
    return picked.permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class PixelGrid:
    """Rows and columns of pixels that are read in each of n boxes; entries beyond a box's own number are not valid."""

    rows: Int64[Tensor, "n g"]
    columns: Int64[Tensor, "n g2"]
    row_valid: Bool[Tensor, "n g"]
    column_valid: Bool[Tensor, "n g2"]

    @property
    def valid(self) -> Bool[Tensor, "n g g2"]:
        return self.row_valid[:, :, None] & self.column_valid[:, None, :]


def pixel_grid(
    boxes: Float[Tensor, "n 4"],
    size: tuple[int, int],
    most: int | None = None,
    offset: Float[Tensor, "n 2"] | None = None,
) -> PixelGrid:
    """All pixels of each box, or at most `most` of its rows and columns, evenly spread.

    offset: in 0..1, vertical and horizontal: where in each stride the row and the column are taken; drawn at random, every
    pixel of a box is equally probable. None: the middle.
    """
    windows = pixel_windows(boxes, size)
    if offset is None:
        offset = torch.full_like(boxes[:, :2], 0.5)
    rows, row_valid = _spread(windows[:, 1], windows[:, 3], most, offset[:, 0])
    columns, column_valid = _spread(windows[:, 0], windows[:, 2], most, offset[:, 1])
    return PixelGrid(rows, columns, row_valid, column_valid)


def _spread(
    start: Int64[Tensor, " n"], stop: Int64[Tensor, " n"], most: int | None, offset: Float[Tensor, " n"]
) -> tuple[Int64[Tensor, "n g"], Bool[Tensor, "n g"]]:
    length = (stop - start).clamp(min=0)
    longest = max(1, int(length.max())) if len(length) else 1
    count = longest if most is None else min(most, longest)
    step = torch.arange(count, device=start.device)
    dense = start[:, None] + step
    sparse = start[:, None] + ((step + offset[:, None]) * length[:, None] / count).floor().long()
    whole = (length <= count)[:, None]
    valid = torch.where(whole, step < length[:, None], length[:, None] > 0)
    places = torch.where(whole, dense, torch.minimum(sparse, stop[:, None] - 1))
    return places.masked_fill(~valid, 0), valid


def read_boxes(
    score_maps: Float[Tensor, "r c h w"],
    boxes: Float[Tensor, "n 4"],
    region_index: Int64[Tensor, " n"],
    grid: PixelGrid,
    size: tuple[int, int],
    k: int,
) -> Float[Tensor, "n 2 g g2"]:
    """Inside and outside scores of each box at the pixels of its grid, from the maps of its region (c = 2 k k).

    boxes and grid are in pixels of an image of `size` = (H, W); maps of another size are read as if bilinear
    interpolation (F.interpolate, align_corners=False) had brought them to it. Not valid entries hold numbers without
    meaning.
    """
    height, width = score_maps.shape[2:]
    flat = score_maps.permute(0, 2, 3, 1).reshape(-1, 2)
    cells = (
        cells_of(grid.rows, boxes[:, 1], boxes[:, 3], k)[:, :, None] * k
        + cells_of(grid.columns, boxes[:, 0], boxes[:, 2], k)[:, None, :]
    )
    base = region_index[:, None, None]

    def read(rows: Int64[Tensor, "n g"], columns: Int64[Tensor, "n g2"]) -> Float[Tensor, "n g g2 2"]:
        places = (base * height + rows[:, :, None]) * width + columns[:, None, :]
        return F.embedding(places * (k * k) + cells, flat)

    return read_bilinear(read, grid, size, (height, width))


def read_bilinear(
    read: Callable[[Int64[Tensor, "n g"], Int64[Tensor, "n g2"]], Float[Tensor, "n g g2 2"]],
    grid: PixelGrid,
    size: tuple[int, int],
    cells: tuple[int, int],
) -> Float[Tensor, "n 2 g g2"]:
    """What `read` says of maps of `cells` = (h, w) at given rows and columns, interpolated to the pixels of the grid."""
    top, bottom, down = neighbours(grid.rows, size[0], cells[0])
    left, right, across = neighbours(grid.columns, size[1], cells[1])
    if cells == size:
        return read(top, left).permute(0, 3, 1, 2)
    corner = read(top, left)
    down, across = down[:, :, None, None].to(corner.dtype), across[:, None, :, None].to(corner.dtype)
    upper = torch.lerp(corner, read(top, right), across)
    lower = torch.lerp(read(bottom, left), read(bottom, right), across)
    return torch.lerp(upper, lower, down).permute(0, 3, 1, 2)


def neighbours(
    pixels: Int64[Tensor, "n g"], size: int, cells: int
) -> tuple[Int64[Tensor, "n g"], Int64[Tensor, "n g"], Float[Tensor, "n g"]]:
    """The two map cells between which each pixel's centre lies, and how far it is on its way to the second."""
    place = ((pixels + 0.5) * cells / size - 0.5).clamp(min=0)
    first = place.floor().long().clamp(max=cells - 1)
    return first, (first + 1).clamp(max=cells - 1), place - first


def instance_scores(scores: Float[Tensor, "n 2 g g2"], valid: Bool[Tensor, "n g g2"]) -> Float[Tensor, " n"]:
    """The logit of each box being right: the mean over its pixels of max(inside, outside); 0 for a box without pixels."""
    best = scores.float().amax(dim=1) * valid
    return best.sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)


def inside_logits(scores: Float[Tensor, "n 2 g g2"]) -> Float[Tensor, "n g g2"]:
    """The logit of each pixel belonging to the object: the softmax over (inside, outside) is its sigmoid."""
    return scores[:, INSIDE].float() - scores[:, OUTSIDE].float()
