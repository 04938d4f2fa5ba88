"""Windows of maps, and which cells a layer must be given for the cells that are wanted of it.

A window may reach beyond its map, as far as a layer pads there. The rules below are whole-number arithmetic on the CPU,
for rows and columns alike; each answers with the smallest window that suffices.
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
    """m windows of maps of `grid` cells: from (row, column) `start` up to `stop`, exclusive. On the CPU."""

    start: Int64[Tensor, "m 2"]
    stop: Int64[Tensor, "m 2"]
    grid: Size

    def __len__(self) -> int:
        return len(self.start)

    @property
    def areas(self) -> Int64[Tensor, " m"]:
        """Cells of each window, those beyond the map included."""
        return (self.stop - self.start).prod(dim=1)

    def grow(self, cells: int) -> "Windows":
        return Windows(self.start - cells, self.stop + cells, self.grid)

    def clip(self) -> "Windows":
        """What lies inside of the map, at least one cell."""
        limit = torch.tensor(self.grid)
        start = torch.minimum(self.start.clamp(min=0), limit - 1)
        return Windows(start, torch.maximum(torch.minimum(self.stop, limit), start + 1), self.grid)

    def contains(self, others: "Windows") -> bool:
        return bool(((self.start <= others.start) & (self.stop >= others.stop)).all())

    def take(self, index: Int64[Tensor, " k"] | Sequence[int]) -> "Windows":
        return Windows(self.start[index], self.stop[index], self.grid)


def box_windows(boxes: Float[Tensor, "n 4"], size: Size) -> Windows:
    """The pixels that each box touches in an image of `size` = (H, W), at least one."""
    x0, y0, x1, y1 = pixel_windows(boxes.detach().cpu(), size).unbind(1)
    return Windows(torch.stack([y0, x0], dim=1), torch.stack([y1, x1], dim=1), size).clip()


def join_windows(parts: Sequence[Windows], grid: Size) -> Windows:
    """The windows of several lists, one after the other."""
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    start = torch.cat([nothing, *(part.start for part in parts)])
    return Windows(start, torch.cat([nothing, *(part.stop for part in parts)]), grid)


def resize_input_window(windows: Windows, grid: Size) -> Windows:
    """What bilinear interpolation from `grid` (F.interpolate, align_corners=False) reads for these windows.

    Where the ratio is no whole number, windows of one size give one cell more or less, by their places: there it is what
    one cell more would need, so that windows of one size can be cut to the fewest (patches.resize).
    """
    if windows.grid == grid:
        return windows
    before, after = torch.tensor(grid), torch.tensor(windows.grid)
    stop = windows.stop + (after % before != 0)
    # a cell's centre lies between the cells floor(((2 i + 1) before - after) / (2 after)) and the next
    first = _floor((2 * windows.start + 1) * before - after, 2 * after)
    last = _floor((2 * stop - 1) * before - after, 2 * after) + 1
    return Windows(first, last + 1, grid)


def after_resizing(windows: Windows, grid: Size) -> Windows:
    """All that bilinear interpolation to `grid` can make of these windows and of nothing else."""
    if windows.grid == grid:
        return windows
    before, after = torch.tensor(windows.grid), torch.tensor(grid)
    first = _ceil((2 * windows.start + 1) * after - before, 2 * before)
    return Windows(first, _ceil((2 * windows.stop - 1) * after - before, 2 * before), grid)


def doubling_input_window(windows: Windows, grid: Size) -> Windows:
    """What a 3x3 transposed convolution of stride 2 and padding 1 reads for these windows."""
    return Windows(_floor(windows.start, 2), _floor(windows.stop, 2) + 1, grid)


def unpooling_input_window(windows: Windows, grid: Size, shape: PoolShape) -> Windows:
    """The pooled cells that can put a value into these windows."""
    start = _ceil(windows.start + shape.padding - shape.kernel + 1, shape.stride)
    return Windows(start, _floor(windows.stop - 1 + shape.padding, shape.stride) + 1, grid)


def merge_windows(windows: Windows, group: Int64[Tensor, " m"]) -> tuple[Windows, Int64[Tensor, " m"]]:
    """Joins windows of one group where the rectangle around both has no more cells than the two.

    Returns the windows that are left, and for each given one the place of what holds it now.
    """
    corners = torch.cat([windows.start, windows.stop], dim=1).tolist()
    merged: dict[int, list[tuple[list[int], list[int]]]] = {}
    for number, (corner, key) in enumerate(zip(corners, group.tolist(), strict=True)):
        kept, members, others = corner, [number], merged.get(key, [])
        joining = True
        while joining:
            joining = False
            for other in others:
                around = [*map(min, kept[:2], other[0][:2]), *map(max, kept[2:], other[0][2:])]
                if _area(around) <= _area(kept) + _area(other[0]):
                    kept, members, joining = around, members + other[1], True
                    others = [left for left in others if left is not other]
                    break
        merged[key] = [*others, (kept, members)]
    left = [entry for entries in merged.values() for entry in entries]
    holder = torch.zeros(len(corners), dtype=torch.int64)
    for place, (_, members) in enumerate(left):
        holder[members] = place
    around_all = torch.tensor([corner for corner, _ in left], dtype=torch.int64).reshape(-1, 4)
    return Windows(around_all[:, :2], around_all[:, 2:], windows.grid), holder


def size_buckets(windows: Windows, slack: float, most_cells: int) -> list[tuple[list[int], Size]]:
    """Windows that are cut out together, and the size that all of a bucket get: at least each one's own.

    slack: how many times its own cells a window may get; most_cells: of a bucket, more only for a single window.
    """
    sizes = (windows.stop - windows.start).tolist()
    order = sorted(range(len(sizes)), key=lambda number: (-sizes[number][0] * sizes[number][1], sizes[number]))
    buckets: list[tuple[list[int], Size]] = []
    for number in order:
        height, width = sizes[number]
        for members, (tall, wide) in buckets:
            fits = height <= tall and width <= wide and tall * wide <= slack * height * width
            if fits and (len(members) + 1) * tall * wide <= most_cells:
                members.append(number)
                break
        else:
            buckets.append(([number], (height, width)))
    return buckets


def inside_grid(start: Int64[Tensor, " m"], length: int, cells: int) -> Bool[Tensor, "m n"]:
    """Which of `length` cells from each start on lie on an axis of `cells` cells."""
    places = start[:, None] + torch.arange(length)
    return (places >= 0) & (places < cells)


def _area(corner: list[int]) -> int:
    return (corner[2] - corner[0]) * (corner[3] - corner[1])


def _floor(a: Tensor, b: Tensor | int) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")


def _ceil(a: Tensor, b: Tensor | int) -> Tensor:
    return -torch.div(-a, b, rounding_mode="floor")
