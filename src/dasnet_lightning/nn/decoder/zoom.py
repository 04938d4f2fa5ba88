"""The zoom decoder: each box is decoded on a grid of its own, so that all objects have one scale.

A level is attended by the box (paper section 2, eq. 1), and then sampled on a grid of the window of the box: 32 cells at the
finest level, half as many at each coarser one. Unlike in the paper a box never shares a map with the other boxes of its
class. docs/concepts.md says what that gives up.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.attention import Rounding
from dasnet_lightning.functional.box_grids import prior_channels, sample_attended
from dasnet_lightning.functional.pooling import PoolShape
from dasnet_lightning.nn.decoder.base import DECODERS, BoxDecoder
from dasnet_lightning.nn.decoder.light import PositionNorm
from dasnet_lightning.types import Pyramid, Regions

FINEST_STRIDE = 4  # finer levels are not read if two others remain
MIN_REGIONS = 2  # BatchNorm takes its statistics from at least this many boxes
PRIORS = 3


class BoxNorm(nn.Module):
    """BatchNorm over the boxes of a batch; a batch of fewer than two is normalized as evaluation does.

    The statistics of a single box are those of one object, and would spoil the running statistics. An empty batch has none.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm: nn.BatchNorm2d | nn.SyncBatchNorm = nn.BatchNorm2d(channels)

    def forward(self, features: Float[Tensor, "n c k k"]) -> Float[Tensor, "n c k k"]:
        """Normalize the features."""
        norm = self.norm
        # SyncBatchNorm counts the boxes of all ranks, which wait for this one.
        if self.training and len(features) < MIN_REGIONS and not isinstance(norm, nn.SyncBatchNorm):
            return F.batch_norm(features, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(features)


class Lateral(nn.Module):
    """Brings a sampled level to one scale and few channels, cell by cell."""

    def __init__(self, level_channels: int, channels: int) -> None:
        super().__init__()
        self.norm = PositionNorm(level_channels)
        self.narrow = nn.Conv2d(level_channels, channels, 1)

    def forward(self, level: Float[Tensor, "n c k k"]) -> Float[Tensor, "n c2 k k"]:
        """Normalize each cell and narrow it."""
        return F.relu(self.narrow(self.norm(level)))


class ZoomBlock(nn.Module):
    """Up-samples the coarser features, concatenates a level and the priors of the box, and convolves twice."""

    def __init__(self, coarse_channels: int, level_channels: int, lateral_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lateral = Lateral(level_channels, lateral_channels)
        inputs = coarse_channels + lateral_channels + PRIORS
        self.fuse = nn.Conv2d(inputs, out_channels, 3, padding=1, bias=False)
        self.fuse_norm = BoxNorm(out_channels)
        self.refine = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.refine_norm = BoxNorm(out_channels)

    def forward(
        self, coarse: Float[Tensor, "n c k k"], level: Float[Tensor, "n c2 k2 k2"], priors: Float[Tensor, "3 k2 k2"]
    ) -> Float[Tensor, "n c3 k2 k2"]:
        """Fuse the coarser features with a sampled level."""
        up = F.interpolate(coarse, size=level.shape[2:], mode="bilinear", align_corners=False)
        priors = priors.to(up.dtype).expand(up.shape[0], -1, -1, -1)  # len() would fix it in an exported graph
        fused = F.relu(self.fuse_norm(self.fuse(torch.cat([up, self.lateral(level), priors], dim=1))))
        return F.relu(fused + self.refine_norm(self.refine(fused)))


class ZoomDecoder(BoxDecoder):
    """Decoder of the window of each box, on a grid of fixed size.

    Args:
        in_channels: channels of each level, finest first.
        strides: stride of each level, finest first.
        grid: cells along each side of the finest grid.
        widths: channels of the blocks, coarse to fine. The decoder reads one level more than there are blocks.
        margin: see `BoxDecoder`.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        strides: tuple[int, ...],
        grid: int = 32,
        widths: Sequence[int] = (96, 48, 32),
        margin: float = 0.1,
    ) -> None:
        super().__init__()
        self.levels = select_levels(strides, len(widths) + 1)
        self.margin = margin
        self.cells = tuple(grid // 2**index for index in range(len(self.levels)))
        widths = list(widths)[-(len(self.levels) - 1) :]
        coarse_first = [in_channels[level] for level in reversed(self.levels)]
        channels = widths[0]
        self.top = Lateral(coarse_first[0], channels)
        self.blocks = nn.ModuleList()
        for level_channels, width in zip(coarse_first[1:], widths, strict=True):
            self.blocks.append(ZoomBlock(channels, level_channels, min(level_channels, width * 2 // 3), width))
            channels = width
        self.out_channels = channels

    def forward(self, pyramid: Pyramid, regions: Regions, rounding: Rounding) -> Float[Tensor, "n c g g"]:
        """See `BoxDecoder.forward`."""
        sampled = [
            sample_attended(pyramid.levels[level], regions, pyramid.size, cells, self.margin, rounding)
            for level, cells in zip(self.levels, self.cells, strict=True)
        ]
        features = self.top(sampled[-1])
        for block, level in zip(self.blocks, reversed(sampled[:-1]), strict=True):
            features = block(features, level, prior_channels(level.shape[2], self.margin, level.device))
        return features


def select_levels(strides: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the indices of the `count` finest levels that the decoder reads, from stride 4 on if there are two such.

    Raises:
        ConfigError: the pyramid has fewer than two levels.
    """
    if len(strides) < 2:
        raise ConfigError(
            f"decoder 'zoom' needs a pyramid of at least two levels, the detector has strides {strides}: use 'light'"
        )
    first = next((index for index, stride in enumerate(strides) if stride >= FINEST_STRIDE), len(strides))
    first = min(first, len(strides) - 2)
    return tuple(range(first, min(first + count, len(strides))))


@DECODERS.register("zoom")
def build_zoom(
    in_channels: tuple[int, ...],
    strides: tuple[int, ...],
    pool_shapes: tuple[PoolShape, ...] | None,
    grid: int = 32,
    widths: Sequence[int] = (96, 48, 32),
    margin: float = 0.1,
) -> ZoomDecoder:
    """Build the decoder of boxes for any detector with at least two levels; it does not use switches.

    Args:
        in_channels: channels of each level of the pyramid, finest first.
        strides: stride of each level, finest first.
        pool_shapes: ignored.
        grid: cells along each side of the finest grid, a multiple of 8; the scores have twice as many.
        widths: channels at the three finest levels, coarse to fine.
        margin: the window of a box is wider on each side by this share of the box.

    Raises:
        ConfigError: an option or the pyramid does not fit.
    """
    if grid < 8 or grid % 8:
        raise ConfigError(f"grid is {grid}, expected a positive multiple of 8")
    if len(widths) != 3:
        raise ConfigError(f"widths is {list(widths)}, expected three, from the coarsest block to the finest")
    if not 0 <= margin <= 1:
        raise ConfigError(f"margin is {margin}, expected a share of the box between 0 and 1")
    return ZoomDecoder(in_channels, strides, grid, widths, margin)
