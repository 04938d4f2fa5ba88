"""Class-agnostic decoders: from the attended pyramid of a region, coarse to fine, to features of each pixel.

The protocol that every decoder answers, and the one place that builds them by name.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from dasnet_lightning.functional.pooling import PoolShape
from dasnet_lightning.registry import Registry
from dasnet_lightning.types import Pyramid


@runtime_checkable
class Decoder(Protocol):
    """What stage two trains. `out_channels` and `out_stride` describe the features that it returns."""

    out_channels: int
    out_stride: int

    def forward(self, pyramid: Pyramid) -> Float[Tensor, "r c h w"]:
        """Decode an attended pyramid (one entry per region in each level) into features at `out_stride`."""
        ...


DECODERS: Registry[Callable[..., nn.Module]] = Registry("decoder")


def build_decoder(
    name: str,
    in_channels: tuple[int, ...],
    strides: tuple[int, ...],
    pool_shapes: tuple[PoolShape, ...] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a decoder by name for a pyramid with these channels and strides (finest first).

    pool_shapes: of the max-poolings whose switches the pyramid holds, finest first; None where it holds none. The builder
    gets these three by their names, and the options. Raises UnknownNameError for a name that nobody registered.
    """
    return DECODERS.get(name)(in_channels=in_channels, strides=strides, pool_shapes=pool_shapes, **options)
