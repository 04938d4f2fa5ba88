"""Class-agnostic decoders: from the attended pyramid of a region, coarse to fine, to features of each pixel.

The protocol that every decoder answers, the one of decoders that can be run on windows, and the one place that builds
them by name.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.patches import Patches
from dasnet_lightning.functional.pooling import PoolShape
from dasnet_lightning.functional.windows import Windows
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


Each = Callable[[Tensor], Tensor]


@runtime_checkable
class Skips(Protocol):
    """What the encoder offers to a decoder: attended levels and switches, where the decoder's features lie.

    `pyramid` is for its sizes alone: it may hold whole images' levels, not yet attended.
    """

    pyramid: Pyramid

    def level(self, index: int, at: Patches | None = None, each: Each | None = None) -> Float[Tensor, "m c h w"]:
        """A level (0 is the finest) in the windows of `at`, or whole; zero outside the boxes and beyond the map.

        each: what the decoder makes of it first, of each cell by itself (a 1x1 convolution): it may be run once for all
        regions of an image and the windows in them, and once for the zeros.
        """
        ...

    def switches(self, index: int, at: Patches | None = None) -> UInt8[Tensor, "m c h w"]:
        """The switches of a pooling (0 is the finest) in the windows of `at`, or whole."""
        ...


@runtime_checkable
class LocalDecoder(Decoder, Protocol):
    """A decoder of two parts, of which the second can be run on windows with exactly the numbers of the whole map.

    `decode_coarse` decodes the coarse levels, whole; `decode_fine` takes its features, or windows of them, to `out_stride`.
    What the second makes of a cell must depend on the cells around it alone, in training too: no normalisation over
    positions or regions. `needs` says which windows of the coarse features suffice for windows of the result.
    """

    def decode_coarse(self, skips: Skips) -> Float[Tensor, "r c h w"]:
        """The features that `decode_fine` begins with."""
        ...

    def decode_fine(self, features: Patches, skips: Skips) -> Patches:
        """The features at `out_stride`, of whole maps or of windows."""
        ...

    def out_size(self, pyramid: Pyramid) -> tuple[int, int]:
        """The cells of the maps that the decoder makes."""
        ...

    def needs(self, windows: Windows, pyramid: Pyramid) -> Windows:
        """Which cells of the coarse features decide about windows of the result; the pyramid is read for its sizes."""
        ...


class WholeSkips:
    """The levels and switches of an attended pyramid, for whole maps."""

    def __init__(self, pyramid: Pyramid) -> None:
        self.pyramid = pyramid

    def level(self, index: int, at: Patches | None = None, each: Each | None = None) -> Float[Tensor, "m c h w"]:
        level = self.pyramid.levels[index]
        return level if each is None else each(level)

    def switches(self, index: int, at: Patches | None = None) -> UInt8[Tensor, "m c h w"]:
        return known_switches(self.pyramid)[index]


def known_switches(pyramid: Pyramid) -> tuple[UInt8[Tensor, "_ _ _ _"], ...]:
    """The switches of a pyramid that must have them."""
    if pyramid.switches is None:
        raise ConfigError("the pyramid holds no switches, but its detector's pool_shapes promised them to the decoder")
    return pyramid.switches


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
