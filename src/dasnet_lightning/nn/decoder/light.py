"""The light decoder: narrow, for any pyramid; at most 1 GMAC per region at 320x320 if no level is finer than stride 4.

Its normalization does not mix positions. So masked cells stay zero until a convolution reaches them, and the fine levels can
run on windows (functional.patches).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.patches import Patches, resize, trim, whole_maps
from dasnet_lightning.functional.pooling import PoolShape
from dasnet_lightning.functional.windows import Size, Windows, resize_input_window
from dasnet_lightning.nn.decoder.base import DECODERS, LocalDecoder, SkipFeatures
from dasnet_lightning.nn.decoder.layers import convolve_patches, halo, relu_
from dasnet_lightning.types import Pyramid

LOCAL_STRIDE = 8  # levels of this stride and finer are decoded in windows; coarser ones would not gain


class PositionNorm(nn.Module):
    """RMS normalization of each cell, with a learned scale per channel; brings the levels of any encoder to one scale.

    It maps zero to zero, so cells outside the boxes stay zero.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, features: Float[Tensor, "r c h w"]) -> Float[Tensor, "r c h w"]:
        """Normalize each cell."""
        mean_square = features.float().square().mean(dim=1, keepdim=True)
        normed = features * torch.rsqrt(mean_square + self.eps).to(features.dtype)
        return normed * self.scale[:, None, None].to(features.dtype)


class FuseBlock(nn.Module):
    """Up-samples the coarser features to the size of the finer level, concatenates the two and convolves."""

    def __init__(self, coarse_channels: int, level_channels: int, lateral_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = PositionNorm(level_channels)
        self.lateral = nn.Conv2d(level_channels, lateral_channels, 1)
        self.fuse = nn.Conv2d(coarse_channels + lateral_channels, out_channels, 3, padding=1)
        self.refine = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, coarse: Patches, level: int, skips: SkipFeatures) -> Patches:
        """Fuse the coarser features with the level of this index."""
        up = resize(coarse, level_size(skips.pyramid, level))
        lateral = skips.level(level, up, self._narrow)
        fused = convolve_patches(self.fuse, up.map(lambda values: torch.cat([values, lateral], dim=1))).map(relu_)
        refined = convolve_patches(self.refine, fused)
        return refined.map(lambda values: relu_(values + trim(fused, refined).values))

    def input_windows(self, windows: Windows, grid: Size) -> Windows:
        """Return what is read of maps of `grid` cells for windows of the output."""
        return resize_input_window(windows.grow(halo(self.fuse, self.refine)), grid)

    def _narrow(self, level: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        return relu_(self.lateral(self.norm(level)))


class UpBlock(nn.Module):
    """Doubles the resolution if the encoder has no finer level."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, features: Patches) -> Patches:
        """Up-sample the features and convolve."""
        up = resize(features, (2 * features.grid[0], 2 * features.grid[1]))
        return convolve_patches(self.convolution, up).map(relu_)

    def input_windows(self, windows: Windows) -> Windows:
        """Return what is read of maps of half the size for windows of the output."""
        half = (windows.grid[0] // 2, windows.grid[1] // 2)
        return resize_input_window(windows.grow(halo(self.convolution)), half)


class LightDecoder(LocalDecoder):
    """Narrow top-down decoder for any pyramid.

    Args:
        in_channels: channels of each level, finest first.
        strides: stride of each level, finest first.
        widths: channels at strides up to 4, at 8, and at 16 and coarser.
        out_stride: stride of the output; if the finest level is finer, the output has the stride of that level.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        strides: tuple[int, ...],
        widths: tuple[int, int, int] = (48, 64, 128),
        out_stride: int = 4,
    ) -> None:
        super().__init__()
        coarse_first = list(zip(in_channels, strides, strict=True))[::-1]
        channels, stride = widths[2], coarse_first[0][1]
        self.top_norm = PositionNorm(coarse_first[0][0])
        self.top = nn.Conv2d(coarse_first[0][0], channels, 1)
        self.blocks = nn.ModuleList()
        for level_channels, stride in coarse_first[1:]:
            width = _width(stride, widths)
            self.blocks.append(FuseBlock(channels, level_channels, min(level_channels, width * 2 // 3), width))
            channels = width
        self.fine_levels = min(sum(stride <= LOCAL_STRIDE for stride in strides), len(self.blocks))
        self.ups = nn.ModuleList()
        while stride > out_stride:
            stride //= 2
            self.ups.append(UpBlock(channels, _width(stride, widths)))
            channels = _width(stride, widths)
        self.out_channels, self.out_stride = channels, stride
        self.apply(_initialize)

    def decode_coarse(self, skips: SkipFeatures) -> Float[Tensor, "r c h w"]:
        """See `LocalDecoder.decode_coarse`."""
        features = whole_maps(skips.level(len(self.blocks), cellwise=self._narrow_top))
        return self._fuse(features, range(self.fine_levels, len(self.blocks)), skips).values

    def decode_fine(self, features: Patches, skips: SkipFeatures) -> Patches:
        """See `LocalDecoder.decode_fine`."""
        features = self._fuse(features, range(self.fine_levels), skips)
        for up in self.ups:
            features = up(features)
        return features

    def out_size(self, pyramid: Pyramid) -> Size:
        """See `LocalDecoder.out_size`."""
        height, width = level_size(pyramid, 0)
        return height * 2 ** len(self.ups), width * 2 ** len(self.ups)

    def input_windows(self, windows: Windows, pyramid: Pyramid) -> Windows:
        """See `LocalDecoder.input_windows`."""
        for up in reversed(self.ups):
            assert isinstance(up, UpBlock)
            windows = up.input_windows(windows)
        for level in range(self.fine_levels):
            windows = self._block(level).input_windows(windows, level_size(pyramid, level + 1))
        return windows

    def _narrow_top(self, level: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        return relu_(self.top(self.top_norm(level)))

    def _block(self, level: int) -> FuseBlock:
        block = self.blocks[len(self.blocks) - 1 - level]
        assert isinstance(block, FuseBlock)
        return block

    def _fuse(self, features: Patches, levels: range, skips: SkipFeatures) -> Patches:
        for level in reversed(levels):
            features = self._block(level)(features, level, skips)
        return features


def level_size(pyramid: Pyramid, level: int) -> Size:
    """Return the (h, w) of a level."""
    return pyramid.levels[level].shape[2], pyramid.levels[level].shape[3]


@DECODERS.register("light")
def build_light(
    in_channels: tuple[int, ...],
    strides: tuple[int, ...],
    pool_shapes: tuple[PoolShape, ...] | None,
    widths: Sequence[int] = (48, 64, 128),
    out_stride: int = 4,
) -> LightDecoder:
    """Build the narrow decoder for any detector; it does not use switches.

    Args:
        in_channels: channels of each level of the pyramid, finest first.
        strides: stride of each level, finest first.
        pool_shapes: ignored.
        widths: channels at strides up to 4, at 8, and at 16 and coarser.
        out_stride: input pixels per cell of the output.

    Raises:
        ConfigError: `widths` are not three.
    """
    if len(widths) != 3:
        raise ConfigError(f"widths is {list(widths)}, expected three: at strides up to 4, at 8, at 16 and coarser")
    return LightDecoder(in_channels, strides, (widths[0], widths[1], widths[2]), out_stride)


def _width(stride: int, widths: tuple[int, int, int]) -> int:
    return widths[0] if stride <= 4 else widths[1] if stride <= 8 else widths[2]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
