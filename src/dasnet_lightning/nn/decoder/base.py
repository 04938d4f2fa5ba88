"""Class-agnostic decoders: from the attended pyramid of a region, coarse to fine, to features of each pixel.

The protocol that every decoder answers, the one of decoders that can be run on windows, and the one place that builds
them by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.patches import Patches, whole_maps
from dasnet_lightning.functional.pooling import PoolShape
from dasnet_lightning.functional.windows import Windows
from dasnet_lightning.registry import Registry
from dasnet_lightning.types import Pyramid


class Decoder(nn.Module, ABC):
    """What stage two trains: turns the attended pyramid of each region into features of its pixels.

    Attributes:
        out_channels: channels of the features.
        out_stride: input pixels per cell of the features.
    """

    out_channels: int
    out_stride: int

    @abstractmethod
    def forward(self, pyramid: Pyramid) -> Float[Tensor, "r c h w"]:
        """Decode an attended pyramid, one entry per region in each level, into features at `out_stride`."""


CellwiseFn = Callable[[Tensor], Tensor]


class SkipFeatures(ABC):
    """What the encoder offers to a decoder: attended levels and switches, wherever the decoder's features lie.

    Attributes:
        pyramid: read for its sizes alone; it may hold whole images' levels, not yet attended.
    """

    pyramid: Pyramid

    @abstractmethod
    def level(self, index: int, at: Patches | None = None, each: CellwiseFn | None = None) -> Float[Tensor, "m c h w"]:
        """Return a level in the windows of `at`, or whole; zero outside the boxes and beyond the map.

        Args:
            index: of the level, 0 is the finest.
            at: the windows; None for whole maps.
            each: a function of each cell alone, such as a 1x1 convolution, that is applied to the level first. It may run
                once for all regions of an image and once for the zeros.
        """

    @abstractmethod
    def switches(self, index: int, at: Patches | None = None) -> UInt8[Tensor, "m c h w"]:
        """Return the switches of a pooling (0 is the finest) in the windows of `at`, or whole."""


class LocalDecoder(Decoder):
    """A decoder of two parts; the second runs on windows too, with exactly the numbers of the whole map.

    `decode_coarse` decodes the coarse levels, whole. `decode_fine` takes its features, or windows of them, to `out_stride`.
    The second part must compute a cell from the cells around it alone, in training too: no normalization over positions or
    regions.
    """

    def forward(self, pyramid: Pyramid) -> Float[Tensor, "r c h w"]:
        """Decode whole maps, coarse then fine."""
        skips = WholeSkipFeatures(pyramid)
        return self.decode_fine(whole_maps(self.decode_coarse(skips)), skips).values

    @abstractmethod
    def decode_coarse(self, skips: SkipFeatures) -> Float[Tensor, "r c h w"]:
        """Return the features that `decode_fine` starts from."""

    @abstractmethod
    def decode_fine(self, features: Patches, skips: SkipFeatures) -> Patches:
        """Return the features at `out_stride`, of whole maps or of windows."""

    @abstractmethod
    def out_size(self, pyramid: Pyramid) -> tuple[int, int]:
        """Return the (h, w) of the decoder's maps."""

    @abstractmethod
    def needs(self, windows: Windows, pyramid: Pyramid) -> Windows:
        """Return the windows of the coarse features that decide windows of the result; reads only the pyramid's sizes."""


class WholeSkipFeatures(SkipFeatures):
    """The levels and switches of an attended pyramid, for whole maps."""

    def __init__(self, pyramid: Pyramid) -> None:
        self.pyramid = pyramid

    def level(self, index: int, at: Patches | None = None, each: CellwiseFn | None = None) -> Float[Tensor, "m c h w"]:
        level = self.pyramid.levels[index]
        return level if each is None else each(level)

    def switches(self, index: int, at: Patches | None = None) -> UInt8[Tensor, "m c h w"]:
        return known_switches(self.pyramid)[index]


def known_switches(pyramid: Pyramid) -> tuple[UInt8[Tensor, "_ _ _ _"], ...]:
    """The switches of a pyramid that must have them."""
    if pyramid.switches is None:
        raise ConfigError("the pyramid holds no switches, but its detector's pool_shapes promised them to the decoder")
    return pyramid.switches


DECODERS: Registry[Callable[..., Decoder]] = Registry("decoder")


def build_decoder(
    name: str,
    in_channels: tuple[int, ...],
    strides: tuple[int, ...],
    pool_shapes: tuple[PoolShape, ...] | None = None,
    **options: Any,
) -> Decoder:
    """Build a decoder by name for a pyramid with these channels and strides (finest first).

    pool_shapes: of the max-poolings whose switches the pyramid holds, finest first; None where it holds none. The builder
    gets these three by their names, and the options. Raises UnknownNameError for a name that nobody registered.
    """
    decoder = DECODERS.get(name)(in_channels=in_channels, strides=strides, pool_shapes=pool_shapes, **options)
    if not isinstance(decoder, Decoder):
        raise ConfigError(f"decoder '{name}': its builder returned {type(decoder).__name__}, expected a Decoder")
    return decoder
