"""The paper's decoder for encoders without switches: stride-2 transposed convolutions instead of unpooling.

The rule of paper.md section 3: up-sample the coarser map to the size and channel count of the next finer masked map and
concatenate. Repeat until the output has the size of the image. Strides 16 and coarser follow this rule. Finer ones take
the widths of the table instead of the level's channel count: modern encoders are too thin there (24 channels at stride 4).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.patches import Patches
from dasnet_lightning.functional.windows import Size, Windows
from dasnet_lightning.nn.decoder.base import LocalDecoder, SkipFeatures
from dasnet_lightning.nn.decoder.layers import (
    CoarseBlock,
    TransposedTo,
    convolve_patches,
    halo,
    halvings,
    initialize,
    transpose_patches,
    transposing_input_window,
)
from dasnet_lightning.types import Pyramid

WIDTHS = (64, 64, 128, 256)  # channels of the table's last layers at strides 1, 2, 4 and 8
COARSE_STRIDE = 16  # blocks of this stride and coarser have BatchNorm


class FineBlock(nn.Module):
    """Up-samples, concatenates the encoder's level of that stride, if any, and convolves; without normalization.

    Args:
        in_channels: channels of the coarser features.
        level_channels: channels of the level, 0 without a level.
        width: channels of the output.
        doublings: number of up-sampling layers; each one about doubles the size.
        level: index of the level in the pyramid; None if the encoder has no level of that stride.
    """

    def __init__(self, in_channels: int, level_channels: int, width: int, doublings: int, level: int | None) -> None:
        super().__init__()
        inputs = (in_channels, *[width] * (doublings - 1))
        self.ups = nn.ModuleList(TransposedTo(channels, width, False) for channels in inputs)
        self.fuse = nn.Conv2d(width + level_channels, width, 3, padding=1)
        self.level = level

    def forward(self, patches: Patches, size: Size, skips: SkipFeatures) -> Patches:
        """Decode patches to maps of `size` cells."""
        for up, step in zip(self.ups, halvings(len(self.ups), size), strict=True):
            assert isinstance(up, TransposedTo)
            patches = transpose_patches(up, patches, step)
        if self.level is not None:
            joined = torch.cat([patches.values, skips.level(self.level, patches)], dim=1)
            patches = Patches(joined, patches.start, patches.grid)
        return convolve_patches(self.fuse, patches).map(lambda values: F.relu(values, inplace=True))

    def input_windows(self, windows: Windows, grid: Size) -> Windows:
        """Return what is read of maps of `grid` cells for windows of the output."""
        grids = [grid, *halvings(len(self.ups), windows.grid)[:-1]]
        windows = windows.grow(halo(self.fuse))
        for before in reversed(grids):
            windows = transposing_input_window(windows, before)
        return windows


class UpsamplingDecoder(LocalDecoder):
    """Top-down decoder for any pyramid: coarse blocks at strides of 16 and more, fine blocks from there to `out_stride`.

    Args:
        in_channels: channels of each level, finest first.
        strides: stride of each level, finest first.
        widths: channels at strides 1, 2, 4 and 8.
        out_stride: input pixels per cell of the output, a power of two; finer levels are not used.
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
            raise ConfigError(f"out_stride is {out_stride}, expected a power of two (1, 2, 4, ...) for decoder 'paper'")
        self.unused = min(sum(stride < out_stride for stride in strides), len(strides) - 1)
        self.coarse, self.fine = nn.ModuleList(), nn.ModuleList()
        channels, stride = in_channels[-1], strides[-1]
        for level in reversed(range(self.unused, len(strides) - 1)):
            level_channels = in_channels[level]
            doublings = max(1, round(math.log2(stride / strides[level])))
            stride = strides[level]
            if stride >= COARSE_STRIDE:
                self.coarse.append(CoarseBlock(channels, level_channels, doublings=doublings))
                channels = 2 * level_channels
            else:
                self.fine.append(FineBlock(channels, level_channels, _width(stride, widths), doublings, level))
                channels = _width(stride, widths)
        self.fine_levels = len(strides) - 1 - len(self.coarse)
        self.free_strides = _strides_between(stride, out_stride)
        for stride in self.free_strides:
            self.fine.append(FineBlock(channels, 0, _width(stride, widths), doublings=1, level=None))
            channels = _width(stride, widths)
        self.out_channels, self.out_stride = channels, stride
        self.apply(initialize)

    def decode_coarse(self, skips: SkipFeatures) -> Float[Tensor, "r c h w"]:
        """See `LocalDecoder.decode_coarse`."""
        coarsest = self.fine_levels + len(self.coarse)
        features = skips.level(coarsest)
        for block, level in zip(self.coarse, reversed(range(self.fine_levels, coarsest)), strict=True):
            features = block(features, skips.level(level))
        return features

    def decode_fine(self, features: Patches, skips: SkipFeatures) -> Patches:
        """See `LocalDecoder.decode_fine`."""
        for block, size in zip(self.fine, self._sizes(skips.pyramid)[1:], strict=True):
            features = block(features, size, skips)
        return features

    def out_size(self, pyramid: Pyramid) -> Size:
        """See `LocalDecoder.out_size`."""
        return self._sizes(pyramid)[-1]

    def input_windows(self, windows: Windows, pyramid: Pyramid) -> Windows:
        """See `LocalDecoder.input_windows`."""
        for block, size in zip(reversed(self.fine), self._sizes(pyramid)[-2::-1], strict=True):
            assert isinstance(block, FineBlock)
            windows = block.input_windows(windows, size)
        return windows

    def _sizes(self, pyramid: Pyramid) -> list[Size]:
        """Return the sizes of the coarse features and of the output of each fine block."""
        levels = pyramid.levels[self.unused : self.fine_levels + 1][::-1]
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        height, width = pyramid.size
        return sizes + [(-(-height // stride), -(-width // stride)) for stride in self.free_strides]


def _width(stride: int, widths: tuple[int, int, int, int]) -> int:
    return widths[min(stride.bit_length() - 1, len(widths) - 1)]


def _strides_between(coarse: int, fine: int) -> tuple[int, ...]:
    """Return the powers of two below `coarse`, down to `fine`: the strides without a level of the encoder."""
    return tuple(2**power for power in reversed(range(fine.bit_length() - 1, coarse.bit_length())) if 2**power < coarse)
