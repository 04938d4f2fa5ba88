"""The paper's decoder for VGG16 (the table in paper.md section 3): the encoder's mirror, layer by layer.

The stride-1 transposed convolutions of the table run as convolutions and hold a convolution's parameters. This is exact. A
transposed convolution of stride 1, padding p and dilation d is the convolution with padding d * (k - 1) - p. Its kernel is
turned by 180 degrees and its channel axes are exchanged. p equals d * (k - 1) / 2 in all of these layers but the two of
padding 0 (layers.TransposedTo).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.patches import Patches, unpool_patches
from dasnet_lightning.functional.pooling import PoolShape, unpool
from dasnet_lightning.functional.windows import Size, Windows, unpooling_input_window
from dasnet_lightning.nn.decoder.base import LocalDecoder, SkipFeatures, require_switches
from dasnet_lightning.nn.decoder.layers import CoarseBlock, halo, initialize, run_patches
from dasnet_lightning.types import Pyramid

# Output channels of the convolutions that follow unpool5 to unpool1.
STAGES = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64, 64))
POOL_STRIDES = (2, 2, 2, 2, 1)
OUT_STRIDES = (16, 8, 4, 2, 1)
FC_WIDTHS = (1024, 512)  # channels after the mirrors of fc7 and fc6
CONV4_3 = 512  # channels
JOINED = 3  # index of the pooling after conv4_3; the level conv4_3 is concatenated after its unpooling


class UnpoolingDecoder(LocalDecoder):
    """Coarse blocks up to fc7, the mirrors of fc7 and fc6, then unpooling by the encoder's switches and convolutions.

    The coarse part (LocalDecoder) ends with the layers after unpool5, at stride 16, whose halo is as large as a 20x20 map.

    Args:
        in_channels: channels of conv4_3, fc7 and two or more extra levels.
        strides: strides of the same levels. A level of half the resolution of the next finer one is up-sampled by a
            strided layer. Any other, such as SSD's conv8_2 and conv9_2, is up-sampled by an unpadded one.
        pool_shapes: the five poolings of VGG16, finest first.
        out_stride: 16, 8, 4, 2 or 1; a coarser output leaves out the last layers of the table.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        strides: tuple[int, ...],
        pool_shapes: tuple[PoolShape, ...],
        out_stride: int = 1,
    ) -> None:
        super().__init__()
        _check(in_channels, strides, pool_shapes, out_stride)
        self.pool_shapes = pool_shapes
        self.coarse = nn.ModuleList()
        channels = in_channels[-1]
        for level in reversed(range(1, len(in_channels) - 1)):
            strided = strides[level + 1] == 2 * strides[level]
            self.coarse.append(CoarseBlock(channels, in_channels[level], strided))
            channels = 2 * in_channels[level]
        self.fully = nn.Sequential(
            nn.Conv2d(channels, FC_WIDTHS[0], 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(FC_WIDTHS[0], FC_WIDTHS[1], 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
        )
        stages = STAGES[: OUT_STRIDES.index(out_stride) + 1]
        inputs = (FC_WIDTHS[1], STAGES[0][-1] + CONV4_3, *(widths[-1] for widths in STAGES[1:]))
        self.stages = nn.ModuleList(
            _build_stage(before, widths) for before, widths in zip(inputs, stages, strict=False)
        )
        self.out_channels, self.out_stride = stages[-1][-1], out_stride
        self.apply(initialize)

    def decode_coarse(self, skips: SkipFeatures) -> Float[Tensor, "r c h w"]:
        """See `LocalDecoder.decode_coarse`."""
        features = skips.level(len(self.coarse) + 1)
        for block, level in zip(self.coarse, reversed(range(1, len(self.coarse) + 1)), strict=True):
            features = block(features, skips.level(level))
        features = self.fully(features)
        pool5 = len(self.pool_shapes) - 1
        size = _sizes(skips.pyramid)[pool5]
        return self.stages[0](unpool(features, skips.switches(pool5), size, *self.pool_shapes[pool5]))

    def decode_fine(self, features: Patches, skips: SkipFeatures) -> Patches:
        """See `LocalDecoder.decode_fine`."""
        sizes = _sizes(skips.pyramid)
        for stage, pooling in zip(self._fine_stages(), self._poolings(), strict=True):
            switches = skips.switches(pooling, features)
            features = unpool_patches(features, switches, sizes[pooling], self.pool_shapes[pooling])
            if pooling == JOINED:
                joined = torch.cat([features.values, skips.level(0, features)], dim=1)
                features = Patches(joined, features.start, features.grid)
            features = run_patches(stage, features)
        return features

    def out_size(self, pyramid: Pyramid) -> Size:
        """See `LocalDecoder.out_size`."""
        return _sizes(pyramid)[len(self.pool_shapes) - len(self.stages)]

    def input_windows(self, windows: Windows, pyramid: Pyramid) -> Windows:
        """See `LocalDecoder.input_windows`."""
        sizes = _sizes(pyramid)
        for stage, pooling in zip(self._fine_stages()[::-1], self._poolings()[::-1], strict=True):
            windows = windows.grow(halo(stage))
            windows = unpooling_input_window(windows, sizes[pooling + 1], self.pool_shapes[pooling])
        return windows

    def _fine_stages(self) -> list[nn.Sequential]:
        return [stage for stage in self.stages if isinstance(stage, nn.Sequential)][1:]

    def _poolings(self) -> list[int]:
        """Return the poolings (0 is the finest) that the fine stages undo, in their order."""
        return [len(self.pool_shapes) - 1 - number for number in range(1, len(self.stages))]


def _sizes(pyramid: Pyramid) -> list[Size]:
    """Return the input size of each pooling, finest first, and the output size of the last."""
    return [pyramid.size, *((codes.shape[2], codes.shape[3]) for codes in require_switches(pyramid))]


def _build_stage(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip((channels, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _check(
    in_channels: tuple[int, ...], strides: tuple[int, ...], pool_shapes: tuple[PoolShape, ...], out_stride: int
) -> None:
    pool_strides = tuple(shape.stride for shape in pool_shapes)
    if pool_strides != POOL_STRIDES or strides[:2] != (8, 16) or in_channels[0] != CONV4_3 or len(strides) < 3:
        raise ConfigError(
            f"decoder 'paper' unpools VGG16 only (poolings of strides {POOL_STRIDES}, {CONV4_3} channels at stride 8, "
            f"next level at 16), got poolings of strides {pool_strides}, channels {in_channels} and strides {strides}: "
            "set the detector's pool_shapes to None to up-sample instead"
        )
    if out_stride not in OUT_STRIDES:
        raise ConfigError(f"out_stride is {out_stride}, expected one of {OUT_STRIDES} for decoder 'paper' on VGG16")
