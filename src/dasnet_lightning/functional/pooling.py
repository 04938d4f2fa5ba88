"""Max-pooling that records the position of each maximum (its switch), and the unpooling that restores it.

A switch is one byte: row * kernel + column of the maximum inside its window. torch's int64 index into the whole map takes
eight times the memory and becomes wrong when a map is cropped. Of equal values the first one counts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F


class PoolShape(NamedTuple):
    """The window of a pooling, in cells."""

    kernel: int = 2
    stride: int = 2
    padding: int = 0


def max_pool_with_switches(
    x: Float[Tensor, "b c H W"], kernel: int = 2, stride: int = 2, padding: int = 0, ceil_mode: bool = False
) -> tuple[Float[Tensor, "b c h w"], UInt8[Tensor, "b c h w"]]:
    """Max-pool a map and return the switches: which of the kernel * kernel cells of each window held the maximum."""
    pooled, flat_index = F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode, return_indices=True)
    width = x.shape[-1]
    rows = torch.arange(pooled.shape[-2], device=x.device)[:, None] * stride - padding
    columns = torch.arange(pooled.shape[-1], device=x.device) * stride - padding
    # The distance from the corner of the window is row * width + column; a switch has `kernel` in place of `width`.
    distance = (flat_index - (rows * width + columns)).to(torch.int32)
    switches = distance - distance.div(width, rounding_mode="floor") * (width - kernel)
    return pooled, switches.to(torch.uint8)


def unpool(
    x: Float[Tensor, "b c h w"],
    switches: UInt8[Tensor, "b c h w"],
    output_size: tuple[int, int],
    kernel: int = 2,
    stride: int = 2,
    padding: int = 0,
) -> Float[Tensor, "b c H W"]:
    """Put each value back where its maximum was and zeros elsewhere.

    If several overlapping windows (pool5 of the paper: 3/1/1) chose the same cell, the value of the last window stays, as
    in torch's max_unpool2d.

    Args:
        x: the pooled values.
        switches: the switches of the pooling.
        output_size: (H, W) of the map before pooling.
        kernel: side of the pooling windows, in cells.
        stride: distance of the pooling windows, in cells.
        padding: padding of the pooling, in cells.
    """
    if kernel == stride and padding == 0:
        return _UnpoolTiles.apply(x, switches, output_size, kernel)
    height, width = x.shape[-2:]
    size = tuple(
        max((n - 1) * stride + kernel, padding + full) for n, full in zip(x.shape[-2:], output_size, strict=True)
    )
    result = _zeros_like(x, size)
    # A later window has the same cell at a smaller code, so counting down leaves the value of the last window.
    for code in reversed(range(kernel * kernel)):
        row, column = divmod(code, kernel)
        window = result[..., row::stride, column::stride][..., :height, :width]
        window.copy_(torch.where(switches == code, x, window))
    return result[..., padding : padding + output_size[0], padding : padding + output_size[1]]


def _zeros_like(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return zeros of another size in the memory layout of `x`."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout).zero_()


def _cell_of_tiles(full: Tensor, code: int, kernel: int, windows: torch.Size) -> tuple[Tensor, int, int]:
    """Return a view of one cell of every tile, and the rows and columns of tiles that have this cell inside the map."""
    view = full[..., code // kernel :: kernel, code % kernel :: kernel][..., : windows[-2], : windows[-1]]
    return view, view.shape[-2], view.shape[-1]


class _UnpoolTiles(torch.autograd.Function):
    """Unpooling of windows that do not overlap: one strided copy per cell of a tile; saves only the switches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, switches: Tensor, output_size: tuple[int, int], kernel: int) -> Tensor:
        ctx.save_for_backward(switches)
        ctx.kernel = kernel
        result = _zeros_like(x, output_size)
        for code in range(kernel * kernel):
            cell, height, width = _cell_of_tiles(result, code, kernel, x.shape)
            cell.copy_(torch.where(switches == code, x, 0)[..., :height, :width])
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (switches,) = ctx.saved_tensors
        result = torch.zeros_like(switches, dtype=grads[0].dtype)
        for code in range(ctx.kernel**2):
            cell, height, width = _cell_of_tiles(grads[0], code, ctx.kernel, switches.shape)
            window = result[..., :height, :width]
            window.copy_(torch.where(switches[..., :height, :width] == code, cell, window))
        return result, None, None, None
