"""The paper's decoder where an encoder has no switches: stride-2 transposed convolutions instead of unpooling.

paper.md section 3: up-sample the coarser map to the size and channel count of the next finer masked map, concatenate,
repeat; the output has the size of the image. Strides 16 and coarser follow the letter. Finer ones take the table's
widths instead of the level's channel count: modern encoders are thin there (24 channels at stride 4), too thin for all
that comes from the coarser levels.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.nn.decoder.layers import CoarseBlock, TransposedTo, initialise, up_to
from dasnet_lightning.types import Pyramid

WIDTHS = (64, 64, 128, 256)  # of the table's last layers at strides 1, 2, 4 and 8
COARSE_STRIDE = 16  # from here on with BatchNorm


class FineBlock(nn.Module):
    """Doubles the resolution, joins the level that the encoder has there, if any, and convolves; no normalisation."""

    def __init__(self, in_channels: int, level_channels: int, width: int, doublings: int) -> None:
        super().__init__()
        inputs = (in_channels, *[width] * (doublings - 1))
        self.ups = nn.ModuleList(TransposedTo(channels, width, False) for channels in inputs)
        self.fuse = nn.Conv2d(width + level_channels, width, 3, padding=1)

    def forward(
        self, coarse: Float[Tensor, "r c1 h1 w1"], size: tuple[int, int], level: Float[Tensor, "r c2 h2 w2"] | None
    ) -> Float[Tensor, "r c3 h2 w2"]:
        up = up_to(self.ups, coarse, size)
        return F.relu(self.fuse(up if level is None else torch.cat([up, level], dim=1)), inplace=True)


class UpsamplingDecoder(nn.Module):
    """Top-down over any pyramid: coarse blocks at strides of 16 and more, fine blocks below, down to `out_stride`.

    widths: channels at strides 1, 2, 4 and 8. out_stride: levels finer than it are not used.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        strides: tuple[int, ...],
        widths: tuple[int, int, int, int] = WIDTHS,
        out_stride: int = 1,
    ) -> None:
        super().__init__()
        if out_stride < 1 or out_stride & (out_stride - 1):
            raise ConfigError(f"out_stride is {out_stride}, decoder 'paper' can stop at a power of two: 1, 2, 4, ...")
        self.unused = min(sum(stride < out_stride for stride in strides), len(strides) - 1)
        self.coarse, self.fine = nn.ModuleList(), nn.ModuleList()
        coarse_first = list(zip(in_channels, strides, strict=True))[self.unused :][::-1]
        channels, stride = coarse_first[0]
        for level_channels, finer in coarse_first[1:]:
            doublings = max(1, round(math.log2(stride / finer)))
            stride = finer
            if stride >= COARSE_STRIDE:
                self.coarse.append(CoarseBlock(channels, level_channels, doublings=doublings))
                channels = 2 * level_channels
            else:
                self.fine.append(FineBlock(channels, level_channels, _width(stride, widths), doublings))
                channels = _width(stride, widths)
        self.free_strides = _strides_between(stride, out_stride)
        for stride in self.free_strides:
            self.fine.append(FineBlock(channels, 0, _width(stride, widths), doublings=1))
            channels = _width(stride, widths)
        self.out_channels, self.out_stride = channels, stride
        self.apply(initialise)

    def forward(self, pyramid: Pyramid) -> Float[Tensor, "r c h w"]:
        features, *finer = pyramid.levels[self.unused :][::-1]
        for block, level in zip(self.coarse, finer, strict=False):
            features = block(features, level)
        levels = finer[len(self.coarse) :]
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        sizes += [(-(-pyramid.size[0] // stride), -(-pyramid.size[1] // stride)) for stride in self.free_strides]
        for block, size, offered in zip(self.fine, sizes, [*levels, *[None] * len(self.free_strides)], strict=True):
            features = block(features, size, offered)
        return features


def _width(stride: int, widths: tuple[int, int, int, int]) -> int:
    return widths[min(stride.bit_length() - 1, len(widths) - 1)]


def _strides_between(coarse: int, fine: int) -> tuple[int, ...]:
    """The powers of two below `coarse`, down to `fine`: where the decoder goes on without the encoder."""
    return tuple(2**power for power in reversed(range(fine.bit_length() - 1, coarse.bit_length())) if 2**power < coarse)
