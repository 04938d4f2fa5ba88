"""Position-sensitive scores of boxes without the score maps.

A pixel of a box reads 2 of the 2 k k channels, so only these two are computed. Each of the k x k cells of a box is a small
window of the decoder's features. It is scored with the weights of its own two channels. The 3x3 convolution runs as a
matrix product (9 taps x 2 channels per position) whose results are shifted and summed.

The definition is `position_sensitive.read_boxes` on the maps of the whole score layer;
tests/functional/test_lazy_scoring.py compares the two.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.functional.patches import Patches
from dasnet_lightning.functional.position_sensitive import PixelGrid, cells_of, neighbors

REACH = 1  # of the score layer, a 3x3 convolution
SIDE = 2 * REACH + 1
FEATURES_AT_ONCE = 2**23  # numbers that are gathered in one step; limits the memory


def score_boxes(
    features: Patches,
    rows: Int64[Tensor, " n"],
    boxes: Float[Tensor, "n 4"],
    grid: PixelGrid,
    size: tuple[int, int],
    weight: Float[Tensor, "c2 c 3 3"],
    bias: Float[Tensor, " c2"],
    k: int,
) -> Float[Tensor, "n 2 g g2"]:
    """Return what `read_boxes` would read from the maps of a score layer, without computing the maps.

    Args:
        features: patches of the decoder's features.
        rows: the patch of each box; it must hold all cells that the box reads and one more on each side.
        boxes: xyxy in pixels of the image.
        grid: the pixels to read in each box.
        size: (H, W) of the image.
        weight: weight of the score layer, c2 = 2 k k.
        bias: bias of the score layer.
        k: cells along one side of a box.
    """
    same_size = features.grid == size
    vertical = _read_plan(grid.rows, grid.row_valid, boxes[:, 1::2], size[0], features.grid[0], k, same_size)
    horizontal = _read_plan(grid.columns, grid.column_valid, boxes[:, ::2], size[1], features.grid[1], k, same_size)
    maps = _cell_maps(features, rows, vertical, horizontal, weight, k)
    maps = maps + bias.view(k * k, 1, 1, 1, 2).to(features.values.dtype)
    return _select(maps, vertical, horizontal, k) if same_size else _interpolate(maps, vertical, horizontal, k)


@dataclass(frozen=True, eq=False)
class _ReadPlan:
    """Which positions of the feature map each of n boxes reads, along one axis.

    Attributes:
        cells: the cell of its box that each pixel lies in.
        near: first of the two positions that linear interpolation reads for each pixel.
        far: second of the two positions.
        far_weight: weight of the second.
        first: first position of the window of each of the k cells of a box.
        length: length of every window, which is that of the longest.
    """

    cells: Int64[Tensor, "n g"]
    near: Int64[Tensor, "n g"]
    far: Int64[Tensor, "n g"]
    far_weight: Float[Tensor, "n g"]
    first: Int64[Tensor, "n k"]
    length: int

    def window_index(self, positions: Int64[Tensor, "n g"]) -> Int64[Tensor, "n g"]:
        """Return the index of map positions in the concatenated windows of all cells."""
        within = (positions - self.first.gather(1, self.cells)).clamp(0, self.length - 1)
        return self.cells * self.length + within

    def interpolation(self, like: Tensor) -> Float[Tensor, "n g m"]:
        """Return the matrix that interpolates the concatenated windows of a box to its pixels."""
        matrix = like.new_zeros(*self.cells.shape, self.first.shape[1] * self.length)
        for positions, weight in ((self.near, 1 - self.far_weight), (self.far, self.far_weight)):
            matrix.scatter_add_(2, self.window_index(positions)[:, :, None], weight[:, :, None].to(like.dtype))
        return matrix

    def padded_windows(self, start: Int64[Tensor, " n"]) -> Int64[Tensor, "k n m"]:
        """Return the positions of each window and of the score layer's halo, relative to patches that begin at `start`."""
        steps = torch.arange(-REACH, self.length + REACH, device=start.device)
        return self.first.T[:, :, None] + steps - start[:, None]


def _read_plan(
    pixels: Int64[Tensor, "n g"],
    valid: Bool[Tensor, "n g"],
    span: Float[Tensor, "n 2"],
    size: int,
    length: int,
    k: int,
    same_size: bool,
) -> _ReadPlan:
    near, far, far_weight = neighbors(pixels, size, length)
    cells = cells_of(pixels, span[:, 0], span[:, 1], k)
    unread = near.new_full((len(pixels), k), length)
    first = unread.scatter_reduce(1, cells, near.masked_fill(~valid, length), "amin")
    end = near if same_size else far
    last = torch.zeros_like(unread).scatter_reduce(1, cells, end.masked_fill(~valid, 0), "amax")
    longest = max(1, int((last - first).max()) + 1) if len(pixels) else 1  # a cell without pixels has first > last
    return _ReadPlan(cells, near, far, far_weight, first, longest)


def _select(
    maps: Float[Tensor, "kk n h w 2"], vertical: _ReadPlan, horizontal: _ReadPlan, k: int
) -> Float[Tensor, "n 2 g g2"]:
    """Read the windows of the cells at each pixel; the maps have the size of the image."""
    box = torch.arange(maps.shape[1], device=maps.device)[:, None, None]
    windows = maps.unflatten(0, (k, k)).permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
    rows, columns = vertical.window_index(vertical.near), horizontal.window_index(horizontal.near)
    return windows[box, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _interpolate(
    maps: Float[Tensor, "kk n h w 2"], vertical: _ReadPlan, horizontal: _ReadPlan, k: int
) -> Float[Tensor, "n 2 g g2"]:
    """Interpolate the windows of the cells to each pixel, with one matrix product per axis."""
    windows = maps.unflatten(0, (k, k)).permute(2, 0, 3, 5, 1, 4).flatten(3, 5).flatten(1, 2)
    rows = torch.bmm(vertical.interpolation(maps), windows).unflatten(2, (2, -1)).flatten(1, 2)
    return torch.bmm(rows, horizontal.interpolation(maps).transpose(1, 2)).unflatten(1, (-1, 2)).transpose(1, 2)


def _cell_maps(
    features: Patches,
    rows: Int64[Tensor, " n"],
    vertical: _ReadPlan,
    horizontal: _ReadPlan,
    weight: Float[Tensor, "c2 c 3 3"],
    k: int,
) -> Float[Tensor, "kk n h w 2"]:
    """Compute the two score maps of each cell of each box on the cell's window, without the bias."""
    values = features.values
    channels, (height, width) = values.shape[1], features.size
    start = features.windows.start.to(values.device)[rows]
    taps = weight.to(values.dtype).view(k * k, 2, channels, SIDE * SIDE)
    taps = taps.permute(0, 2, 3, 1).reshape(k * k, channels, -1)
    flat = values.permute(0, 2, 3, 1).reshape(-1, channels)
    y, x = vertical.padded_windows(start[:, 0]), horizontal.padded_windows(start[:, 1])
    y_on_map, x_on_map = _on_map(y + start[:, :1], features.grid[0]), _on_map(x + start[:, 1:], features.grid[1])
    on_map = y_on_map[:, None, :, :, None] & x_on_map[None, :, :, None, :]
    index = (rows[:, None] * height + y.clamp(0, height - 1))[:, None, :, :, None] * width
    index = index + x.clamp(0, width - 1)[None, :, :, None, :]
    boxes_at_once = max(1, FEATURES_AT_ONCE // (k * k * y.shape[2] * x.shape[2] * channels))
    chunks = []
    for index_chunk, on_map_chunk in zip(
        index.split(boxes_at_once, dim=2), on_map.split(boxes_at_once, dim=2), strict=True
    ):
        products = torch.bmm(F.embedding(index_chunk.flatten(0, 1).flatten(1), flat), taps)
        products = products.view(k * k, *index_chunk.shape[2:], SIDE * SIDE, 2)
        products = products * on_map_chunk.flatten(0, 1)[..., None, None]
        chunks.append(_shift_and_sum(products, vertical.length, horizontal.length))
    return torch.cat(chunks, dim=1)


def _shift_and_sum(
    products: Float[Tensor, "kk n h2 w2 taps 2"], height: int, width: int
) -> Float[Tensor, "kk n h w 2"]:
    total = torch.zeros_like(products[:, :, :height, :width, 0])
    for tap in range(SIDE * SIDE):
        row, column = divmod(tap, SIDE)
        total = total + products[:, :, row : row + height, column : column + width, tap]
    return total


def _on_map(positions: Int64[Tensor, "k n m"], length: int) -> Bool[Tensor, "k n m"]:
    return (positions >= 0) & (positions < length)
