"""The paper's decoder for every detector: unpooling if the encoder has switches, else up-sampling.

experiments/benchmarks/operations.py prints its cost at 320x320.
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
    """Build the decoder of the table in paper.md section 3 for VGG16, or its counterpart for any other encoder.

    Args:
        in_channels: channels of each level of the pyramid, finest first.
        strides: stride of each level, finest first.
        pool_shapes: the max-poolings whose switches the pyramid holds, finest first; None if it holds none.
        widths: channels at strides 1, 2, 4 and 8, for encoders without switches; None means those of the table.
        out_stride: input pixels per cell of the output; 1 is full resolution.

    Raises:
        ConfigError: the options or the pyramid do not fit.
    """
    if pool_shapes is None:
        return UpsamplingDecoder(in_channels, strides, widths or WIDTHS, out_stride)
    if widths is not None:
        raise ConfigError(
            "decoder 'paper' takes no widths for an encoder with switches, whose widths the paper fixes: remove widths"
        )
    return UnpoolingDecoder(in_channels, strides, pool_shapes, out_stride)
