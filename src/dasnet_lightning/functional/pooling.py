"""Max-pooling that remembers where each maximum stood, and the unpooling that puts values back there.

A switch is one byte, row * kernel + column of the maximum inside its window, instead of the int64 address in the whole
map: an eighth of the memory, and it stays true when a map is cropped. Of equal values the first one counts.
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
    """Max-pool a map; the switches say which of the kernel * kernel places of each window held the maximum."""
    pooled, address = F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode, return_indices=True)
    width = x.shape[-1]
    rows = torch.arange(pooled.shape[-2], device=x.device)[:, None] * stride - padding
    columns = torch.arange(pooled.shape[-1], device=x.device) * stride - padding
    # The distance from the window's corner is row * width + column: taking row * (width - kernel) off gives the code.
    distance = (address - (rows * width + columns)).to(torch.int32)
    code = distance - distance.div(width, rounding_mode="floor") * (width - kernel)
    return pooled, code.to(torch.uint8)


def unpool(
    x: Float[Tensor, "b c h w"],
    switches: UInt8[Tensor, "b c h w"],
    output_size: tuple[int, int],
    kernel: int = 2,
    stride: int = 2,
    padding: int = 0,
) -> Float[Tensor, "b c H W"]:
    """Put each value back where its maximum stood and zeros elsewhere; `output_size` is that of the map before pooling.

    Where windows overlap (pool5 of the paper: 3/1/1) and several chose the same place, the last window's value stays,
    as in torch's max_unpool2d.
    """
    if kernel == stride and padding == 0:
        return _UnpoolTiles.apply(x, switches, output_size, kernel)
    height, width = x.shape[-2:]
    size = tuple(
        max((n - 1) * stride + kernel, padding + full) for n, full in zip(x.shape[-2:], output_size, strict=True)
    )
    result = _zeros_like(x, size)
    # A later window sees the same place at a smaller code: going down leaves the last window's value.
    for code in reversed(range(kernel * kernel)):
        row, column = divmod(code, kernel)
        window = result[..., row::stride, column::stride][..., :height, :width]
        window.copy_(torch.where(switches == code, x, window))
    return result[..., padding : padding + output_size[0], padding : padding + output_size[1]]


def _zeros_like(x: Tensor, size: Sequence[int]) -> Tensor:
    """Zeros of another size in the memory layout of `x`."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout).zero_()


def _place(full: Tensor, code: int, kernel: int, windows: torch.Size) -> tuple[Tensor, int, int]:
    """A view of one place of every tile, and for how many rows and columns of windows the map has that place."""
    place = full[..., code // kernel :: kernel, code % kernel :: kernel][..., : windows[-2], : windows[-1]]
    return place, place.shape[-2], place.shape[-1]


class _UnpoolTiles(torch.autograd.Function):
    """Windows side by side: each place of a tile is one strided copy, forth and back, and only the codes are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, switches: Tensor, output_size: tuple[int, int], kernel: int) -> Tensor:
        ctx.save_for_backward(switches)
        ctx.kernel = kernel
        result = _zeros_like(x, output_size)
        for code in range(kernel * kernel):
            place, height, width = _place(result, code, kernel, x.shape)
            place.copy_(torch.where(switches == code, x, 0)[..., :height, :width])
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (switches,) = ctx.saved_tensors
        result = torch.zeros_like(switches, dtype=grads[0].dtype)
        for code in range(ctx.kernel**2):
            place, height, width = _place(grads[0], code, ctx.kernel, switches.shape)
            window = result[..., :height, :width]
            window.copy_(torch.where(switches[..., :height, :width] == code, place, window))
        return result, None, None, None
