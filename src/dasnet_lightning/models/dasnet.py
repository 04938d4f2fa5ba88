"""DASNet (paper section 1): detection -> attention -> segmentation, composed by the constructor and nothing else.

The way of the data: images -> detector.features -> Pyramid -> boxes -> Regions -> attend -> decoder -> head -> logits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.attention import Rounding, attend
from dasnet_lightning.functional.patches import whole_maps
from dasnet_lightning.functional.windows import Windows, before_resizing, join_windows
from dasnet_lightning.models.local_decoding import Piece, decode_windows
from dasnet_lightning.nn.decoder import Decoder, build_decoder
from dasnet_lightning.nn.decoder.base import LocalDecoder
from dasnet_lightning.nn.decoder.layers import halo
from dasnet_lightning.nn.heads import Head, PositionSensitiveHead, SemanticHead
from dasnet_lightning.types import Images, Pyramid, Regions


class DASNet(nn.Module):
    """Composes a detector, a decoder and a head; one decode answers for all regions of a batch together.

    soft_attention: 0 is the paper's attention by boxes. Above 0 a second decode follows, for which the features inside the
    boxes are weighted by what the first one saw there (paper section 10, class-specific features at pixel level): a cell
    of no foreground keeps 1 - soft_attention of its features.
    """

    def __init__(
        self,
        detector: Detector,
        decoder: Decoder,
        head: Head,
        rounding: Rounding = "cover",
        soft_attention: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= soft_attention <= 1:
            raise ConfigError(f"soft_attention is {soft_attention}, expected a share between 0 and 1")
        self.detector = detector
        self.decoder = decoder
        self.head = head
        self.rounding = rounding
        self.soft_attention = soft_attention

    def forward(self, images: Images, regions: Regions) -> Float[Tensor, "r c H W"]:
        """Logits of each region in input pixels."""
        return self.decode(self.detector.features(images), regions)

    def decode(self, pyramid: Pyramid, regions: Regions) -> Float[Tensor, "r c H W"]:
        """Logits of each region in input pixels, from features that were computed before."""
        return to_pixels(self.score(pyramid, regions), pyramid.size)

    @property
    def decodes_windows(self) -> bool:
        """Whether `decode_windows` does so exactly; else it decodes whole maps: a decoder that is no LocalDecoder, a head
        of another kind than ours, or soft attention, whose weights come from whole maps.
        """
        ours = isinstance(self.head, SemanticHead | PositionSensitiveHead)
        return isinstance(self.decoder, LocalDecoder) and ours and self.soft_attention == 0

    def decode_windows(
        self, pyramid: Pyramid, regions: Regions, windows: Sequence[Windows], regions_at_once: int
    ) -> Iterator[Piece]:
        """The decoder's features over windows, with the cells around them that the head reads: the head is yet to come.

        windows: one for each box of the regions, in their order; several lists where images are read at several sizes,
        each in the pixels of its own `grid`. Only what bilinear interpolation to that size reads of a window is decoded.
        regions_at_once: as many whole maps are held together at most.
        """
        if not self.decodes_windows:
            yield from self._decode_whole(pyramid, regions, regions_at_once)
            return
        assert isinstance(self.decoder, LocalDecoder)
        assert isinstance(self.head, nn.Module)
        grid = self.decoder.out_size(pyramid)
        read = join_windows([before_resizing(part, grid) for part in windows], grid).grow(halo(self.head))
        owners = regions.region_index
        yield from decode_windows(self.decoder, pyramid, regions, self.rounding, read, owners, regions_at_once)

    def _decode_whole(self, pyramid: Pyramid, regions: Regions, regions_at_once: int) -> Iterator[Piece]:
        owners = regions.region_index.cpu()
        for start in range(0, len(regions), regions_at_once):
            some = regions.select(start, start + regions_at_once)
            attended = attend(pyramid, some, self.rounding)
            if self.soft_attention > 0:
                attended = self._attend_softly(pyramid, some, self._score(attended))
            features = self.decoder.forward(attended)
            numbers = ((owners >= start) & (owners < start + regions_at_once)).nonzero()[:, 0]
            yield Piece(numbers, owners[numbers] - start, whole_maps(features))

    def score(self, pyramid: Pyramid, regions: Regions) -> Float[Tensor, "r c h w"]:
        """Logits of each region at the decoder's own resolution."""
        return self.passes(pyramid, regions)[-1]

    def passes(self, pyramid: Pyramid, regions: Regions) -> tuple[Float[Tensor, "r c h w"], ...]:
        """The logits of each decode, the answer last: one with attention by boxes, a second with soft attention.

        What the first decode saw is detached: the second teaches the decoder alone.
        """
        first = self._score(attend(pyramid, regions, self.rounding))
        if self.soft_attention == 0:
            return (first,)
        return first, self._score(self._attend_softly(pyramid, regions, first))

    def _score(self, attended: Pyramid) -> Float[Tensor, "r c h w"]:
        return self.head.forward(self.decoder.forward(attended))

    def _attend_softly(self, pyramid: Pyramid, regions: Regions, first: Float[Tensor, "r c h w"]) -> Pyramid:
        seen = self.head.foreground(first.detach(), regions, pyramid.size)
        return attend(pyramid, regions, self.rounding, 1 - self.soft_attention * (1 - seen))


def to_pixels(logits: Float[Tensor, "r c h w"], size: tuple[int, int]) -> Float[Tensor, "r c H W"]:
    """Logits at the size of the input."""
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def build_dasnet(
    num_classes: int,
    detector: str = "ssd320_vgg16",
    detector_options: Mapping[str, Any] | None = None,
    decoder: str = "light",
    decoder_options: Mapping[str, Any] | None = None,
    rounding: Rounding = "cover",
    head: Callable[[int], Head] = SemanticHead,
    frozen: bool = True,
    soft_attention: float = 0.0,
) -> DASNet:
    """The network of stage two: a detector by name, a decoder by name that fits its pyramid, a head.

    head: makes the head for the decoder's channels. frozen: the detector cannot learn; False is for joint training.
    """
    found = build_detector(detector, num_classes, **(detector_options or {}))
    # only detectors whose pyramids hold switches have it
    pool_shapes = getattr(found, "pool_shapes", None)
    built = build_decoder(decoder, found.out_channels, found.strides, pool_shapes, **(decoder_options or {}))
    assert isinstance(built, Decoder)
    eyes = FrozenDetector(found) if frozen else found
    network = DASNet(eyes, built, head(built.out_channels), rounding, soft_attention)
    return network.to(memory_format=torch.channels_last)
