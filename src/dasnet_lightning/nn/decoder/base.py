"""The base classes of all decoders, and the registry that builds them by name.

A decoder turns the attended features of a region into features of its pixels, coarse to fine; it does not know the class.
`MapDecoder` is the interface of decoders of whole maps, `LocalDecoder` that of those that can also run on windows, and
`BoxDecoder` that of decoders of one box at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.attention import Rounding
from dasnet_lightning.functional.patches import Patches, whole_maps
from dasnet_lightning.functional.pooling import PoolShape
from dasnet_lightning.functional.windows import Windows
from dasnet_lightning.registry import Registry
from dasnet_lightning.types import Pyramid, Regions


class Decoder(nn.Module, ABC):
    """Turns features of the detector into features of the pixels of each region; stage two trains it.

    A decoder is a `MapDecoder` or a `BoxDecoder`.

    Attributes:
        out_channels: channels of the features.
    """

    out_channels: int


class MapDecoder(Decoder):
    """Decodes each region as one map of the whole image.

    Attributes:
        out_stride: input pixels per cell of the features.
    """

    out_stride: int

    @abstractmethod
    def forward(self, pyramid: Pyramid) -> Float[Tensor, "r c h w"]:
        """Decode an attended pyramid, one entry per region in each level, into features at `out_stride`."""


class BoxDecoder(Decoder):
    """Decodes each box alone, on a grid of cells over its window (functional.box_grids).

    Attributes:
        margin: the window of a box is wider on each side by this share of the box.
    """

    margin: float

    @abstractmethod
    def forward(self, pyramid: Pyramid, regions: Regions, rounding: Rounding) -> Float[Tensor, "n c g g"]:
        """Decode the window of each box into features on its grid.

        Args:
            pyramid: features of the images, not attended.
            regions: the n boxes, in input pixels. Each box is attended to alone, also in a region of several.
            rounding: see `functional.attention.box_attention`.
        """


CellwiseFn = Callable[[Tensor], Tensor]  # a function of each cell alone, such as a 1x1 convolution


class SkipFeatures(ABC):
    """The encoder's side of the skip connections: attended levels and switches, whole or in windows.

    Attributes:
        pyramid: source of the sizes only; its levels may be those of whole images, not attended.
    """

    pyramid: Pyramid

    @abstractmethod
    def level(
        self, index: int, at: Patches | None = None, cellwise: CellwiseFn | None = None
    ) -> Float[Tensor, "m c h w"]:
        """Return an attended level, zero outside the boxes and beyond the map.

        Args:
            index: index of the level, 0 is the finest.
            at: the windows to return; None for whole maps.
            cellwise: function to apply to the level before the attention. It may run once for all regions of an image and
                once for the zeros outside the boxes.
        """

    @abstractmethod
    def switches(self, index: int, at: Patches | None = None) -> UInt8[Tensor, "m c h w"]:
        """Return the switches of a pooling (0 is the finest) in the windows of `at`, or of whole maps if it is None."""


class LocalDecoder(MapDecoder):
    """Decoder of maps whose fine layers also run on windows, with exactly the numbers of the whole map.

    `decode_coarse` decodes the coarse levels as whole maps. `decode_fine` continues to `out_stride`, on whole maps or on
    windows. Each cell of `decode_fine` must depend on its receptive field only, in training too: a normalization over
    positions or regions is not allowed.
    """

    def forward(self, pyramid: Pyramid) -> Float[Tensor, "r c h w"]:
        """Decode whole maps."""
        skips = WholeSkipFeatures(pyramid)
        return self.decode_fine(whole_maps(self.decode_coarse(skips)), skips).values

    @abstractmethod
    def decode_coarse(self, skips: SkipFeatures) -> Float[Tensor, "r c h w"]:
        """Decode the coarse levels into the features that `decode_fine` starts from."""

    @abstractmethod
    def decode_fine(self, features: Patches, skips: SkipFeatures) -> Patches:
        """Decode coarse features, as whole maps or windows, into features at `out_stride`."""

    @abstractmethod
    def out_size(self, pyramid: Pyramid) -> tuple[int, int]:
        """Return the (h, w) of the features at `out_stride`."""

    @abstractmethod
    def input_windows(self, windows: Windows, pyramid: Pyramid) -> Windows:
        """Return the windows of the coarse features that `decode_fine` needs for windows of its output.

        Args:
            windows: windows of the features at `out_stride`.
            pyramid: source of the sizes only.
        """


class WholeSkipFeatures(SkipFeatures):
    """Skip features of whole maps, from a pyramid that is already attended."""

    def __init__(self, pyramid: Pyramid) -> None:
        self.pyramid = pyramid

    def level(
        self, index: int, at: Patches | None = None, cellwise: CellwiseFn | None = None
    ) -> Float[Tensor, "m c h w"]:
        """See `SkipFeatures.level`."""
        level = self.pyramid.levels[index]
        return level if cellwise is None else cellwise(level)

    def switches(self, index: int, at: Patches | None = None) -> UInt8[Tensor, "m c h w"]:
        """See `SkipFeatures.switches`."""
        return require_switches(self.pyramid)[index]


def require_switches(pyramid: Pyramid) -> tuple[UInt8[Tensor, "_ _ _ _"], ...]:
    """Return the switches of a pyramid.

    Raises:
        ConfigError: the pyramid has none.
    """
    if pyramid.switches is None:
        raise ConfigError(
            "the pyramid has no switches, but the detector declares pool_shapes: return switches from its backbone or "
            "set pool_shapes to None"
        )
    return pyramid.switches


DECODERS: Registry[Callable[..., Decoder]] = Registry("decoder")


def build_decoder(
    name: str,
    in_channels: tuple[int, ...],
    strides: tuple[int, ...],
    pool_shapes: tuple[PoolShape, ...] | None = None,
    **options: Any,
) -> Decoder:
    """Build a decoder by its registered name.

    Args:
        name: a name in `DECODERS`.
        in_channels: channels of each level of the pyramid, finest first.
        strides: stride of each level, finest first.
        pool_shapes: the max-poolings whose switches the pyramid holds, finest first; None if it holds none.
        options: go to the builder, with the three arguments above.

    Raises:
        UnknownNameError: the name is not registered.
        ConfigError: the builder does not return a MapDecoder or BoxDecoder.
    """
    decoder = DECODERS.get(name)(in_channels=in_channels, strides=strides, pool_shapes=pool_shapes, **options)
    if not isinstance(decoder, MapDecoder | BoxDecoder):
        found = type(decoder).__name__
        raise ConfigError(f"decoder '{name}': its builder returned {found}, expected a MapDecoder or a BoxDecoder")
    return decoder
