"""The paper's decoder for VGG16 (paper.md section 3, the table): the encoder's mirror, layer by layer.

Of the table's two kinds of stride-1 layers, transposed convolutions and convolutions, both run as convolutions here and
hold a convolution's parameters. That is exact: a transposed convolution of stride 1 with padding p and dilation d is the
convolution with padding d * (k - 1) - p whose kernel is turned by 180 degrees and whose channel axes are exchanged, and
p equals d * (k - 1) / 2 in every such layer but the two of padding 0 (layers.TransposedTo).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.patches import Patches, unpool_patches
from dasnet_lightning.functional.pooling import PoolShape, unpool
from dasnet_lightning.functional.windows import Windows, unpooling_input_window
from dasnet_lightning.nn.decoder.base import LocalDecoder, SkipFeatures, known_switches
from dasnet_lightning.nn.decoder.layers import CoarseBlock, Size, halo, initialize, run_patches
from dasnet_lightning.types import Pyramid

# The layers that follow unpool5 to unpool1: channels of all but the first input, which is what was unpooled.
STAGES = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64, 64))
POOL_STRIDES = (2, 2, 2, 2, 1)
OUT_STRIDES = (16, 8, 4, 2, 1)
FULLY = (1024, 512)  # of the mirrors of fc7 and fc6, what pool5 gave
CONV4_3 = 512  # channels
JOINED = 3  # the pooling after conv4_3, whose level is joined when it is undone


class UnpoolingDecoder(LocalDecoder):
    """Coarse blocks to fc7, the mirrors of fc7 and fc6, then unpooling by the encoder's switches and convolutions.

    in_channels, strides: of VGG16's pyramid: conv4_3, fc7, and two or more extra levels; one of them that is half its
    finer neighbour is met by a strided layer, any other by an unpadded one, as SSD's conv8_2 and conv9_2. Sizes follow
    the encoder's. out_stride: 16, 8, 4, 2 or 1; the coarser, the fewer of the table's last layers.

    Of its two parts (LocalDecoder) the first ends with the layers after unpool5, at stride 16: their halo is as large as
    a 20x20 map.
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
            nn.Conv2d(channels, FULLY[0], 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(FULLY[0], FULLY[1], 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
        )
        kept = STAGES[: OUT_STRIDES.index(out_stride) + 1]
        inputs = (FULLY[1], STAGES[0][-1] + CONV4_3, *(widths[-1] for widths in STAGES[1:]))
        self.stages = nn.ModuleList(_stage(first, widths) for first, widths in zip(inputs, kept, strict=False))
        self.out_channels, self.out_stride = kept[-1][-1], out_stride
        self.apply(initialize)

    def decode_coarse(self, skips: SkipFeatures) -> Float[Tensor, "r c h w"]:
        features = skips.level(len(self.coarse) + 1)
        for block, level in zip(self.coarse, reversed(range(1, len(self.coarse) + 1)), strict=True):
            features = block(features, skips.level(level))
        features = self.fully(features)
        pool5 = len(self.pool_shapes) - 1
        size = _sizes(skips.pyramid)[pool5]
        return self.stages[0](unpool(features, skips.switches(pool5), size, *self.pool_shapes[pool5]))

    def decode_fine(self, features: Patches, skips: SkipFeatures) -> Patches:
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
        return _sizes(pyramid)[len(self.pool_shapes) - len(self.stages)]

    def needs(self, windows: Windows, pyramid: Pyramid) -> Windows:
        sizes = _sizes(pyramid)
        for stage, pooling in zip(self._fine_stages()[::-1], self._poolings()[::-1], strict=True):
            windows = windows.grow(halo(stage))
            windows = unpooling_input_window(windows, sizes[pooling + 1], self.pool_shapes[pooling])
        return windows

    def _fine_stages(self) -> list[nn.Sequential]:
        return [stage for stage in self.stages if isinstance(stage, nn.Sequential)][1:]

    def _poolings(self) -> list[int]:
        """The encoder's poolings (0 is the finest) that the fine stages undo, in their order."""
        return [len(self.pool_shapes) - 1 - number for number in range(1, len(self.stages))]


def _sizes(pyramid: Pyramid) -> list[Size]:
    """What each pooling looked at, finest first: the image, or what the pooling before it gave; and what the last gave."""
    return [pyramid.size, *((codes.shape[2], codes.shape[3]) for codes in known_switches(pyramid))]


def _stage(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
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
            f"next level at 16), not poolings of {pool_strides}, channels {in_channels} and strides {strides}: "
            "a detector without pool_shapes is up-sampled instead"
        )
    if out_stride not in OUT_STRIDES:
        raise ConfigError(f"out_stride is {out_stride}, decoder 'paper' on VGG16 can stop at one of {OUT_STRIDES}")
