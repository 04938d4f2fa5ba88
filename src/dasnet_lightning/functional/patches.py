"""Patches: windows cut out of maps, and the layers' arithmetic on them, exactly as on the whole map.

A layer that reads neighbours makes a patch smaller by what it cannot know: at a cut nothing is padded. Where the map
itself ends a patch reaches beyond it, and what a convolution would read there as padding is set to zero before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.functional.pooling import PoolShape, unpool
from dasnet_lightning.functional.windows import Size, Windows, after_resizing, inside_grid

NO_SWITCH = 255


@dataclass(frozen=True, eq=False)
class Patches:
    """m patches of maps of `grid` cells, each from its own (row, column) `start` on; None: m whole maps.

    What a patch holds beyond its map has no meaning. `start` is on the CPU.
    """

    values: Float[Tensor, "m c h w"]
    start: Int64[Tensor, "m 2"] | None
    grid: Size

    @property
    def whole(self) -> bool:
        return self.start is None

    @property
    def size(self) -> Size:
        return self.values.shape[2], self.values.shape[3]

    @property
    def windows(self) -> Windows:
        start = torch.zeros(len(self.values), 2, dtype=torch.int64) if self.start is None else self.start
        return Windows(start, start + torch.tensor(self.size), self.grid)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Patches":
        """What a function of each cell by itself makes of the values."""
        return Patches(function(self.values), self.start, self.grid)


def whole_maps(values: Float[Tensor, "m c h w"]) -> Patches:
    """Whole maps as patches."""
    return Patches(values, None, (values.shape[2], values.shape[3]))


def cut(
    maps: Shaped[Tensor, "s c H W"],
    source: Int64[Tensor, " m"],
    start: Int64[Tensor, "m 2"],
    size: Size,
    beyond: float | None = None,
) -> Shaped[Tensor, "m c h w"]:
    """Cut m windows of one size out of the maps `source`; beyond a map stands its nearest cell, or the value given."""
    height, width = maps.shape[2:]
    rows = (start[:, :1] + torch.arange(size[0])).clamp(0, height - 1)
    columns = (start[:, 1:] + torch.arange(size[1])).clamp(0, width - 1)
    places = (rows[:, :, None] * width + columns[:, None, :]).to(maps.device) + (source * height * width)[:, None, None]
    flat = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    values = F.embedding(places, flat).permute(0, 3, 1, 2)
    if beyond is None:
        return values
    outside = _outside(start, size, (height, width))
    return values if outside is None else values.masked_fill(outside.to(maps.device), beyond)


def paste(patches: Patches, maps: Float[Tensor, "r c H W"], targets: Int64[Tensor, " m"]) -> None:
    """Write each patch where it belongs in one of the maps, in place."""
    inside = patches.windows.clip()
    corners = torch.cat([inside.start, inside.stop], dim=1).tolist()
    first = patches.windows.start.tolist()
    for values, target, (top, left), (y0, x0, y1, x1) in zip(
        patches.values, targets.tolist(), first, corners, strict=True
    ):
        maps[target, :, y0:y1, x0:x1] = values[:, y0 - top : y1 - top, x0 - left : x1 - left]


def trim(patches: Patches, like: Patches) -> Patches:
    """The part of each patch that another, smaller one holds too; all of them are cut in the same way."""
    if patches.start is None or like.start is None:
        return patches
    top, left = (like.start - patches.start)[0].tolist() if len(like.start) else (0, 0)
    values = patches.values[:, :, top : top + like.size[0], left : left + like.size[1]]
    return Patches(values, like.start, patches.grid)


def seal(patches: Patches) -> Patches:
    """Zero beyond the map, as a convolution pads."""
    if patches.start is None:
        return patches
    outside = _outside(patches.start, patches.size, patches.grid)
    if outside is None:
        return patches
    outside = outside.to(patches.values.device)
    if torch.is_grad_enabled():
        return patches.map(lambda values: values.masked_fill(outside, 0))
    patches.values.masked_fill_(outside, 0)  # saves a copy, and nobody reads there
    return patches


def convolve(
    patches: Patches, weight: Float[Tensor, "c2 c _ _"], bias: Float[Tensor, " c2"] | None, dilation: int = 1
) -> Patches:
    """The convolution of stride 1 that keeps the size of its map."""
    lost = dilation * (weight.shape[2] - 1) // 2
    if patches.start is None:
        return patches.map(lambda values: F.conv2d(values, weight, bias, padding=lost, dilation=dilation))
    known = seal(patches) if lost else patches
    return Patches(F.conv2d(known.values, weight, bias, dilation=dilation), patches.start + lost, patches.grid)


def double(
    patches: Patches, weight: Float[Tensor, "c c2 3 3"], bias: Float[Tensor, " c2"] | None, grid: Size
) -> Patches:
    """The transposed convolution of stride 2 and padding 1 to `grid`, n cells to 2 n - 1 or 2 n."""
    if patches.start is None:
        extra = [full - 2 * n + 1 for full, n in zip(grid, patches.size, strict=True)]
        up = F.conv_transpose2d(patches.values, weight, bias, stride=2, padding=1, output_padding=extra)
        return Patches(up, None, grid)
    up = F.conv_transpose2d(seal(patches).values, weight, bias, stride=2, padding=1)
    return Patches(up, 2 * patches.start, grid)


def unpool_patches(patches: Patches, switches: Shaped[Tensor, "m c h w"], grid: Size, shape: PoolShape) -> Patches:
    """Unpooling (functional.pooling) by the switches of the same windows, to maps of `grid` cells."""
    if patches.start is None:
        return Patches(unpool(patches.values, switches, grid, *shape), None, grid)
    kernel, stride, padding = shape
    outside = _outside(patches.start, patches.size, patches.grid)
    if outside is not None and kernel > stride:  # there a window beyond the map would write into it
        switches = switches.masked_fill(outside.to(switches.device), NO_SWITCH)
    full = [(n - 1) * stride + kernel for n in patches.size]
    values = unpool(patches.values, switches, (full[0], full[1]), kernel, stride)
    shared = kernel - stride  # cells at each end into which windows that are not here can write too
    values = values[:, :, shared : full[0] - shared, shared : full[1] - shared]
    return Patches(values, patches.start * stride - padding + shared, grid)


def resize(patches: Patches, grid: Size) -> Patches:
    """Bilinear interpolation of the whole maps to `grid` (F.interpolate, align_corners=False), of the patches' part."""
    if patches.grid == grid:
        return patches
    if patches.start is None:
        return Patches(F.interpolate(patches.values, size=grid, mode="bilinear", align_corners=False), None, grid)
    after = after_resizing(patches.windows, grid)
    size = (after.stop - after.start).amin(dim=0).tolist() if len(after) else [0, 0]
    vertical, horizontal = (
        _interpolation(
            patches.start[:, axis], patches.size[axis], patches.grid[axis], after.start[:, axis], size[axis], grid[axis]
        ).to(patches.values)
        for axis in (0, 1)
    )
    number, channels, height, width = patches.values.shape
    rows = patches.values.permute(0, 2, 3, 1).reshape(number, height, width * channels)
    rows = torch.bmm(vertical, rows).reshape(number * size[0], width, channels)
    columns = horizontal[:, None].expand(-1, size[0], -1, -1).reshape(number * size[0], size[1], width)
    values = torch.bmm(columns, rows).reshape(number, size[0], size[1], channels).permute(0, 3, 1, 2)
    return Patches(values, after.start, grid)


def _interpolation(
    start: Int64[Tensor, " m"], length: int, cells: int, first: Int64[Tensor, " m"], count: int, wanted: int
) -> Float[Tensor, "m n length"]:
    """Of each patch the matrix that takes `length` cells from `start` on to `count` interpolated ones from `first` on."""
    places = first[:, None] + torch.arange(count)
    position = ((places + 0.5) * (cells / wanted) - 0.5).clamp(0, cells - 1)
    low = position.floor()
    near = low.long() - start[:, None]
    far = (low.long() + 1).clamp(max=cells - 1) - start[:, None]
    share = position - low
    matrix = torch.zeros(len(start), count, length)
    for cell, weight in ((near, 1 - share), (far, share)):
        matrix.scatter_add_(2, cell.clamp(0, length - 1)[:, :, None], weight[:, :, None])
    return matrix


def _outside(start: Int64[Tensor, "m 2"], size: Size, grid: Size) -> Bool[Tensor, "m 1 h w"] | None:
    """The cells beyond the map, None where no window reaches there."""
    rows, columns = (inside_grid(start[:, axis], size[axis], grid[axis]) for axis in (0, 1))
    if bool(rows.all()) and bool(columns.all()):
        return None
    return ~(rows[:, None, :, None] & columns[:, None, None, :])
