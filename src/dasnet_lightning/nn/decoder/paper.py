"""The paper's decoder for every detector: by unpooling where the encoder gives its switches, else by up-sampling.

Its cost at 320x320 is printed by experiments/benchmarks/operations.py.
"""

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.pooling import PoolShape
from dasnet_lightning.nn.decoder.base import DECODERS
from dasnet_lightning.nn.decoder.unpooling import UnpoolingDecoder
from dasnet_lightning.nn.decoder.upsampling import WIDTHS, UpsamplingDecoder


@DECODERS.register("paper")
def build_paper(
    in_channels: tuple[int, ...],
    strides: tuple[int, ...],
    pool_shapes: tuple[PoolShape, ...] | None,
    widths: tuple[int, int, int, int] | None = None,
    out_stride: int = 1,
) -> UnpoolingDecoder | UpsamplingDecoder:
    """The table of paper.md section 3 for VGG16, its like for any other encoder.

    widths: channels at strides 1, 2, 4 and 8, for encoders without switches; the table's own where None. out_stride:
    stop before full resolution.
    """
    if pool_shapes is None:
        return UpsamplingDecoder(in_channels, strides, widths or WIDTHS, out_stride)
    if widths is not None:
        raise ConfigError(
            "widths were given to decoder 'paper', but where the encoder has switches the table fixes them"
        )
    return UnpoolingDecoder(in_channels, strides, pool_shapes, out_stride)
