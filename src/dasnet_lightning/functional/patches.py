"""Patches: windows cut out of feature maps, and layers that compute on them exactly what they compute on whole maps.

At a cut nothing is padded, so a layer that reads its neighbors makes a patch smaller. At the border of the map a patch
reaches beyond it; `seal` sets those cells to zero, as a convolution pads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.functional.pooling import PoolShape, unpool
from dasnet_lightning.functional.windows import Size, Windows, after_resizing, inside_grid

NO_SWITCH = 255  # matches no cell of a pooling window


@dataclass(frozen=True, eq=False)
class Patches:
    """m patches of one size, each cut out of a map of `grid` cells; values beyond a map are arbitrary.

    Attributes:
        values: the patches.
        start: (row, column) of the first cell of each patch, on the CPU; None if the patches are whole maps.
        grid: (rows, columns) of the maps.
    """

    values: Float[Tensor, "m c h w"]
    start: Int64[Tensor, "m 2"] | None
    grid: Size

    @property
    def whole(self) -> bool:
        """Whether the patches are whole maps."""
        return self.start is None

    @property
    def size(self) -> Size:
        """The (height, width) of each patch."""
        return self.values.shape[2], self.values.shape[3]

    @property
    def windows(self) -> Windows:
        """The window of each patch."""
        start = torch.zeros(len(self.values), 2, dtype=torch.int64) if self.start is None else self.start
        return Windows(start, start + torch.tensor(self.size), self.grid)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Patches":
        """Apply a cellwise function to the values."""
        return Patches(function(self.values), self.start, self.grid)


def whole_maps(values: Float[Tensor, "m c h w"]) -> Patches:
    """Return whole maps as patches."""
    return Patches(values, None, (values.shape[2], values.shape[3]))


def cut(
    maps: Shaped[Tensor, "s c H W"],
    source: Int64[Tensor, " m"],
    start: Int64[Tensor, "m 2"],
    size: Size,
    fill: float | None = None,
) -> Shaped[Tensor, "m c h w"]:
    """Cut m windows of one size out of maps.

    Args:
        maps: the maps.
        source: the map of each window.
        start: (row, column) of the first cell of each window, on the CPU.
        size: (height, width) of all windows.
        fill: the value beyond the map; None repeats the nearest cell of the map.
    """
    height, width = maps.shape[2:]
    rows = (start[:, :1] + torch.arange(size[0])).clamp(0, height - 1)
    columns = (start[:, 1:] + torch.arange(size[1])).clamp(0, width - 1)
    index = (rows[:, :, None] * width + columns[:, None, :]).to(maps.device) + (source * height * width)[:, None, None]
    flat = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    values = F.embedding(index, flat).permute(0, 3, 1, 2)
    if fill is None:
        return values
    outside = _outside(start, size, (height, width))
    return values if outside is None else values.masked_fill(outside.to(maps.device), fill)


def paste(patches: Patches, maps: Float[Tensor, "r c H W"], targets: Int64[Tensor, " m"]) -> None:
    """Write each patch into its window of the map `targets[i]`, in place."""
    inside = patches.windows.clip()
    corners = torch.cat([inside.start, inside.stop], dim=1).tolist()
    starts = patches.windows.start.tolist()
    for values, target, (top, left), (y0, x0, y1, x1) in zip(
        patches.values, targets.tolist(), starts, corners, strict=True
    ):
        maps[target, :, y0:y1, x0:x1] = values[:, y0 - top : y1 - top, x0 - left : x1 - left]


def trim(patches: Patches, like: Patches) -> Patches:
    """Trim each patch to the smaller patch of `like`; all patches lose the same rows and columns."""
    if patches.start is None or like.start is None:
        return patches
    top, left = (like.start - patches.start)[0].tolist() if len(like.start) else (0, 0)
    values = patches.values[:, :, top : top + like.size[0], left : left + like.size[1]]
    return Patches(values, like.start, patches.grid)


def seal(patches: Patches) -> Patches:
    """Set the cells beyond the map to zero, as a convolution pads; in place if gradients are off."""
    if patches.start is None:
        return patches
    outside = _outside(patches.start, patches.size, patches.grid)
    if outside is None:
        return patches
    outside = outside.to(patches.values.device)
    if torch.is_grad_enabled():
        return patches.map(lambda values: values.masked_fill(outside, 0))
    patches.values.masked_fill_(outside, 0)  # saves a copy; the overwritten values are arbitrary
    return patches


def convolve(
    patches: Patches, weight: Float[Tensor, "c2 c _ _"], bias: Float[Tensor, " c2"] | None, dilation: int = 1
) -> Patches:
    """Run a convolution of stride 1 that keeps the size of its map; a patch loses the reach of the kernel on each side."""
    reach = dilation * (weight.shape[2] - 1) // 2
    if patches.start is None:
        return patches.map(lambda values: F.conv2d(values, weight, bias, padding=reach, dilation=dilation))
    padded = seal(patches) if reach else patches
    return Patches(F.conv2d(padded.values, weight, bias, dilation=dilation), patches.start + reach, patches.grid)


def double(
    patches: Patches, weight: Float[Tensor, "c c2 3 3"], bias: Float[Tensor, " c2"] | None, grid: Size
) -> Patches:
    """Run a transposed convolution of stride 2 and padding 1; `grid` must be 2 n - 1 or 2 n cells for maps of n cells."""
    if patches.start is None:
        output_padding = [target - 2 * n + 1 for target, n in zip(grid, patches.size, strict=True)]
        up = F.conv_transpose2d(patches.values, weight, bias, stride=2, padding=1, output_padding=output_padding)
        return Patches(up, None, grid)
    up = F.conv_transpose2d(seal(patches).values, weight, bias, stride=2, padding=1)
    return Patches(up, 2 * patches.start, grid)


def unpool_patches(patches: Patches, switches: Shaped[Tensor, "m c h w"], grid: Size, shape: PoolShape) -> Patches:
    """Unpool (functional.pooling) with the switches of the same windows, to maps of `grid` cells."""
    if patches.start is None:
        return Patches(unpool(patches.values, switches, grid, *shape), None, grid)
    kernel, stride, padding = shape
    outside = _outside(patches.start, patches.size, patches.grid)
    if outside is not None and kernel > stride:  # a window beyond the map would write into it
        switches = switches.masked_fill(outside.to(switches.device), NO_SWITCH)
    height, width = ((n - 1) * stride + kernel for n in patches.size)
    values = unpool(patches.values, switches, (height, width), kernel, stride)
    overlap = kernel - stride  # cells at each end that windows outside of the patch can write too
    values = values[:, :, overlap : height - overlap, overlap : width - overlap]
    return Patches(values, patches.start * stride - padding + overlap, grid)


def resize(patches: Patches, grid: Size) -> Patches:
    """Resize to maps of `grid` cells, as F.interpolate (bilinear, align_corners=False) resizes the whole maps.

    A patch keeps the cells that it determines alone, cut to the fewest among all patches.
    """
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
    start: Int64[Tensor, " m"],
    length: int,
    cells: int,
    new_start: Int64[Tensor, " m"],
    new_length: int,
    new_cells: int,
) -> Float[Tensor, "m n length"]:
    """Return the interpolation matrix of each patch along one axis.

    Args:
        start: first cell of each patch.
        length: cells of each patch.
        cells: cells of the map.
        new_start: first cell of each resized patch.
        new_length: cells of each resized patch.
        new_cells: cells of the resized map.
    """
    targets = new_start[:, None] + torch.arange(new_length)
    position = ((targets + 0.5) * (cells / new_cells) - 0.5).clamp(0, cells - 1)
    low = position.floor()
    near = low.long() - start[:, None]
    far = (low.long() + 1).clamp(max=cells - 1) - start[:, None]
    far_weight = position - low
    matrix = torch.zeros(len(start), new_length, length)
    for cell, weight in ((near, 1 - far_weight), (far, far_weight)):
        matrix.scatter_add_(2, cell.clamp(0, length - 1)[:, :, None], weight[:, :, None])
    return matrix


def _outside(start: Int64[Tensor, "m 2"], size: Size, grid: Size) -> Bool[Tensor, "m 1 h w"] | None:
    """Mark the cells beyond the map; None if no window reaches beyond it."""
    rows, columns = (inside_grid(start[:, axis], size[axis], grid[axis]) for axis in (0, 1))
    if bool(rows.all()) and bool(columns.all()):
        return None
    return ~(rows[:, None, :, None] & columns[:, None, None, :])
