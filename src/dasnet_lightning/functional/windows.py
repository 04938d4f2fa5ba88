"""Windows of feature maps, and the input window that each kind of layer needs for a window of its output.

A window may reach beyond its map, as far as a layer pads. All rules are integer arithmetic on the CPU, the same for rows
and columns, and return the smallest window that suffices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dasnet_lightning.functional.boxes import pixel_windows
from dasnet_lightning.functional.pooling import PoolShape

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Windows:
    """m windows of maps of `grid` = (rows, columns) cells, on the CPU.

    Attributes:
        start: (row, column) of the first cell of each window.
        stop: (row, column) after the last cell.
        grid: (rows, columns) of the maps.
    """

    start: Int64[Tensor, "m 2"]
    stop: Int64[Tensor, "m 2"]
    grid: Size

    def __len__(self) -> int:
        return len(self.start)

    @property
    def areas(self) -> Int64[Tensor, " m"]:
        """Number of cells of each window, including those beyond the map."""
        return (self.stop - self.start).prod(dim=1)

    def grow(self, cells: int) -> "Windows":
        """Widen each window by `cells` on every side."""
        return Windows(self.start - cells, self.stop + cells, self.grid)

    def clip(self) -> "Windows":
        """Clip each window to its map, to at least one cell."""
        limit = torch.tensor(self.grid)
        start = torch.minimum(self.start.clamp(min=0), limit - 1)
        return Windows(start, torch.maximum(torch.minimum(self.stop, limit), start + 1), self.grid)

    def contains(self, others: "Windows") -> bool:
        """Whether each window contains the other window of the same row."""
        return bool(((self.start <= others.start) & (self.stop >= others.stop)).all())

    def take(self, index: Int64[Tensor, " k"] | Sequence[int]) -> "Windows":
        """Select windows by index."""
        return Windows(self.start[index], self.stop[index], self.grid)


def box_windows(boxes: Float[Tensor, "n 4"], size: Size) -> Windows:
    """Return the pixels that each box touches in an image of `size` = (H, W), at least one."""
    x0, y0, x1, y1 = pixel_windows(boxes.detach().cpu(), size).unbind(1)
    return Windows(torch.stack([y0, x0], dim=1), torch.stack([y1, x1], dim=1), size).clip()


def join_windows(parts: Sequence[Windows], grid: Size) -> Windows:
    """Concatenate windows."""
    empty = torch.zeros(0, 2, dtype=torch.int64)
    start = torch.cat([empty, *(part.start for part in parts)])
    return Windows(start, torch.cat([empty, *(part.stop for part in parts)]), grid)


def resize_input_window(windows: Windows, grid: Size) -> Windows:
    """Return what bilinear interpolation from `grid` (F.interpolate, align_corners=False) reads for these windows.

    If the ratio of the grids is not a whole number, windows of one size can differ by one cell, depending on their
    position. Then one more cell is included, so that windows of one size can be cut to the fewest (patches.resize).
    """
    if windows.grid == grid:
        return windows
    before, after = torch.tensor(grid), torch.tensor(windows.grid)
    stop = windows.stop + (after % before != 0)
    # The center of cell i lies between the cells floor(((2 i + 1) before - after) / (2 after)) and the next.
    first = _floor((2 * windows.start + 1) * before - after, 2 * after)
    last = _floor((2 * stop - 1) * before - after, 2 * after) + 1
    return Windows(first, last + 1, grid)


def after_resizing(windows: Windows, grid: Size) -> Windows:
    """Return what bilinear interpolation to `grid` can compute from these windows alone."""
    if windows.grid == grid:
        return windows
    before, after = torch.tensor(windows.grid), torch.tensor(grid)
    first = _ceil((2 * windows.start + 1) * after - before, 2 * before)
    return Windows(first, _ceil((2 * windows.stop - 1) * after - before, 2 * before), grid)


def doubling_input_window(windows: Windows, grid: Size) -> Windows:
    """Return what a 3x3 transposed convolution of stride 2 and padding 1 reads for these windows."""
    return Windows(_floor(windows.start, 2), _floor(windows.stop, 2) + 1, grid)


def unpooling_input_window(windows: Windows, grid: Size, shape: PoolShape) -> Windows:
    """Return the pooled cells whose values unpooling can put into these windows."""
    start = _ceil(windows.start + shape.padding - shape.kernel + 1, shape.stride)
    return Windows(start, _floor(windows.stop - 1 + shape.padding, shape.stride) + 1, grid)


def merge_windows(windows: Windows, group: Int64[Tensor, " m"]) -> tuple[Windows, Int64[Tensor, " m"]]:
    """Merge windows of one group if the rectangle around them has no more cells than they have together.

    Returns:
        The merged windows, and for each given window the index of the merged one that contains it.
    """
    rectangles = torch.cat([windows.start, windows.stop], dim=1).tolist()
    merged: dict[int, list[tuple[list[int], list[int]]]] = {}
    for number, (rectangle, key) in enumerate(zip(rectangles, group.tolist(), strict=True)):
        members, others = [number], merged.get(key, [])
        merging = True
        while merging:
            merging = False
            for other in others:
                union = [*map(min, rectangle[:2], other[0][:2]), *map(max, rectangle[2:], other[0][2:])]
                if _area(union) <= _area(rectangle) + _area(other[0]):
                    rectangle, members, merging = union, members + other[1], True
                    others = [entry for entry in others if entry is not other]
                    break
        merged[key] = [*others, (rectangle, members)]
    entries = [entry for group_entries in merged.values() for entry in group_entries]
    merged_index = torch.zeros(len(rectangles), dtype=torch.int64)
    for index, (_, members) in enumerate(entries):
        merged_index[members] = index
    corners = torch.tensor([rectangle for rectangle, _ in entries], dtype=torch.int64).reshape(-1, 4)
    return Windows(corners[:, :2], corners[:, 2:], windows.grid), merged_index


def size_buckets(windows: Windows, slack: float, max_cells: int) -> list[tuple[list[int], Size]]:
    """Group windows of similar size into buckets; all windows of a bucket are cut out at the size of the largest.

    Args:
        windows: the windows.
        slack: limit on the cells that a window is cut out with, as a multiple of its own cells.
        max_cells: limit on the cells of a bucket; a single window may exceed it.

    Returns:
        For each bucket the indices of its windows and their common (height, width).
    """
    sizes = (windows.stop - windows.start).tolist()
    largest_first = sorted(range(len(sizes)), key=lambda number: (-sizes[number][0] * sizes[number][1], sizes[number]))
    buckets: list[tuple[list[int], Size]] = []
    for number in largest_first:
        height, width = sizes[number]
        for members, (bucket_height, bucket_width) in buckets:
            bucket_cells = bucket_height * bucket_width
            fits = height <= bucket_height and width <= bucket_width and bucket_cells <= slack * height * width
            if fits and (len(members) + 1) * bucket_cells <= max_cells:
                members.append(number)
                break
        else:
            buckets.append(([number], (height, width)))
    return buckets


def inside_grid(start: Int64[Tensor, " m"], length: int, cells: int) -> Bool[Tensor, "m n"]:
    """Mark which of the `length` cells from each start lie on an axis of `cells` cells."""
    positions = start[:, None] + torch.arange(length)
    return (positions >= 0) & (positions < cells)


def _area(rectangle: list[int]) -> int:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])


def _floor(a: Tensor, b: Tensor | int) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")


def _ceil(a: Tensor, b: Tensor | int) -> Tensor:
    return -torch.div(-a, b, rounding_mode="floor")
