"""Position-sensitive scores without the maps: a pixel of a box reads 2 of the 2 k k channels, so only these are computed.

Each of the k x k cells of a box is a small window of the decoder's features, scored with the weights of its own two
channels. The 3x3 convolution runs as a matrix product, 9 taps x 2 channels for each place, whose results are shifted
and summed. `read_boxes` on the maps of the whole score layer is the definition.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.functional.patches import Patches
from dasnet_lightning.functional.position_sensitive import PixelGrid, cells_of, neighbours

REACH = 1  # of the score layer, a 3x3 convolution
SIDE = 2 * REACH + 1
FEATURES_AT_ONCE = 2**23  # numbers that are gathered together, which bounds the memory


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
    """What `read_boxes` reads of the maps that a score layer (weight, bias: c2 = 2 k k) would make of the features.

    rows: the patch of each box, which holds all that the box reads and one cell around it. boxes and grid are in pixels
    of an image of `size` = (H, W).
    """
    same = features.grid == size
    down = _axis(grid.rows, grid.row_valid, boxes[:, 1::2], size[0], features.grid[0], k, same)
    across = _axis(grid.columns, grid.column_valid, boxes[:, ::2], size[1], features.grid[1], k, same)
    maps = _cell_maps(features, rows, down, across, weight, k) + bias.view(k * k, 1, 1, 1, 2).to(features.values.dtype)
    return _pick(maps, down, across, k) if same else _interpolate(maps, down, across, k)


@dataclass(frozen=True, eq=False)
class _Axis:
    """Along one axis: the cell of its box that each pixel lies in, the two places of the maps between which its centre
    lies and how far it is on its way to the second, and from where on each cell of a box reads the maps.
    """

    cells: Int64[Tensor, "n g"]
    near: Int64[Tensor, "n g"]
    far: Int64[Tensor, "n g"]
    share: Float[Tensor, "n g"]
    first: Int64[Tensor, "n k"]
    length: int  # of the window of each cell: the longest's

    def inside(self, places: Int64[Tensor, "n g"]) -> Int64[Tensor, "n g"]:
        """Where each place of the maps stands among the windows of all cells, one after the other."""
        within = (places - self.first.gather(1, self.cells)).clamp(0, self.length - 1)
        return self.cells * self.length + within

    def weights(self, like: Tensor) -> Float[Tensor, "n g m"]:
        """The matrix that takes the windows of a box's cells to its pixels."""
        matrix = like.new_zeros(*self.cells.shape, self.first.shape[1] * self.length)
        for places, weight in ((self.near, 1 - self.share), (self.far, self.share)):
            matrix.scatter_add_(2, self.inside(places)[:, :, None], weight[:, :, None].to(like.dtype))
        return matrix

    def around(self, start: Int64[Tensor, " n"]) -> Int64[Tensor, "k n m"]:
        """The windows and what the score layer reads around them, as places in patches from `start` on."""
        reading = torch.arange(-REACH, self.length + REACH, device=start.device)
        return self.first.T[:, :, None] + reading - start[:, None]


def _axis(
    pixels: Int64[Tensor, "n g"],
    valid: Bool[Tensor, "n g"],
    span: Float[Tensor, "n 2"],
    size: int,
    length: int,
    k: int,
    same: bool,
) -> _Axis:
    near, far, share = neighbours(pixels, size, length)
    cells = cells_of(pixels, span[:, 0], span[:, 1], k)
    none = near.new_full((len(pixels), k), length)
    first = none.scatter_reduce(1, cells, near.masked_fill(~valid, length), "amin")
    last = torch.zeros_like(none).scatter_reduce(1, cells, (near if same else far).masked_fill(~valid, 0), "amax")
    longest = max(1, int((last - first).max()) + 1) if len(pixels) else 1  # no pixel: first > last
    return _Axis(cells, near, far, share, first, longest)


def _pick(maps: Float[Tensor, "kk n h w 2"], down: _Axis, across: _Axis, k: int) -> Float[Tensor, "n 2 g g2"]:
    """What stands in the windows of the cells (maps as fine as the image) at each pixel."""
    number = torch.arange(maps.shape[1], device=maps.device)[:, None, None]
    windows = maps.unflatten(0, (k, k)).permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
    rows, columns = down.inside(down.near), across.inside(across.near)
    return windows[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _interpolate(maps: Float[Tensor, "kk n h w 2"], down: _Axis, across: _Axis, k: int) -> Float[Tensor, "n 2 g g2"]:
    """The windows of the cells interpolated to each pixel: two products, along each axis what it reads is a matrix."""
    windows = maps.unflatten(0, (k, k)).permute(2, 0, 3, 5, 1, 4).flatten(3, 5).flatten(1, 2)
    rows = torch.bmm(down.weights(maps), windows).unflatten(2, (2, -1)).flatten(1, 2)
    return torch.bmm(rows, across.weights(maps).transpose(1, 2)).unflatten(1, (-1, 2)).transpose(1, 2)


def _cell_maps(
    features: Patches, rows: Int64[Tensor, " n"], down: _Axis, across: _Axis, weight: Float[Tensor, "c2 c 3 3"], k: int
) -> Float[Tensor, "kk n h w 2"]:
    """Of each cell of each box its own two score maps, on its window."""
    values = features.values
    channels, (height, width) = values.shape[1], features.size
    start = features.windows.start.to(values.device)[rows]
    taps = (
        weight.to(values.dtype).view(k * k, 2, channels, SIDE * SIDE).permute(0, 2, 3, 1).reshape(k * k, channels, -1)
    )
    flat = values.permute(0, 2, 3, 1).reshape(-1, channels)
    y, x = down.around(start[:, 0]), across.around(start[:, 1])
    tall, wide = _on_map(y + start[:, :1], features.grid[0]), _on_map(x + start[:, 1:], features.grid[1])
    known = tall[:, None, :, :, None] & wide[None, :, :, None, :]
    places = (rows[:, None] * height + y.clamp(0, height - 1))[:, None, :, :, None] * width
    places = places + x.clamp(0, width - 1)[None, :, :, None, :]
    at_once = max(1, FEATURES_AT_ONCE // (k * k * y.shape[2] * x.shape[2] * channels))
    parts = []
    for some, inside in zip(places.split(at_once, dim=2), known.split(at_once, dim=2), strict=True):
        products = torch.bmm(F.embedding(some.flatten(0, 1).flatten(1), flat), taps)
        products = products.view(k * k, *some.shape[2:], SIDE * SIDE, 2) * inside.flatten(0, 1)[..., None, None]
        parts.append(_shift_and_sum(products, down.length, across.length))
    return torch.cat(parts, dim=1)


def _shift_and_sum(
    products: Float[Tensor, "kk n h2 w2 taps 2"], height: int, width: int
) -> Float[Tensor, "kk n h w 2"]:
    total = torch.zeros_like(products[:, :, :height, :width, 0])
    for tap in range(SIDE * SIDE):
        row, column = divmod(tap, SIDE)
        total = total + products[:, :, row : row + height, column : column + width, tap]
    return total


def _on_map(places: Int64[Tensor, "k n m"], cells: int) -> Bool[Tensor, "k n m"]:
    return (places >= 0) & (places < cells)
