"""DASNet (paper section 1): detection -> attention -> segmentation, composed by the constructor and nothing else.

The way of the data: images -> detector.features -> Pyramid -> boxes -> Regions -> attend -> decoder -> head -> logits.
"""

from collections.abc import Callable, Mapping
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
from dasnet_lightning.nn.decoder import Decoder, build_decoder
from dasnet_lightning.nn.heads import Head, SemanticHead
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

    def attend(self, pyramid: Pyramid, regions: Regions) -> Pyramid:
        """The features that the last decode reads: attended by boxes, and softly too if `soft_attention` is above 0."""
        attended = attend(pyramid, regions, self.rounding)
        if self.soft_attention == 0:
            return attended
        return self._attend_softly(pyramid, regions, self._score(attended))

    def _score(self, attended: Pyramid) -> Float[Tensor, "r c h w"]:
        return self.head(self.decoder(attended))

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
    trained = build_detector(detector, num_classes, **(detector_options or {}))
    region_decoder = build_decoder(
        decoder, trained.out_channels, trained.strides, trained.pool_shapes, **(decoder_options or {})
    )
    stage_two_detector = FrozenDetector(trained) if frozen else trained
    network = DASNet(stage_two_detector, region_decoder, head(region_decoder.out_channels), rounding, soft_attention)
    return network.to(memory_format=torch.channels_last)
