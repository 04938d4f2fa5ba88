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
from dasnet_lightning.functional.attention import Rounding, attend
from dasnet_lightning.nn.decoder import Decoder, build_decoder
from dasnet_lightning.nn.heads import SemanticHead
from dasnet_lightning.types import Images, Pyramid, Regions


class DASNet(nn.Module):
    """Composes a detector, a decoder and a head; one decode answers for all regions of a batch together."""

    def __init__(self, detector: Detector, decoder: Decoder, head: nn.Module, rounding: Rounding = "cover") -> None:
        super().__init__()
        self.detector = detector
        self.decoder = decoder
        self.head = head
        self.rounding = rounding

    def forward(self, images: Images, regions: Regions) -> Float[Tensor, "r c H W"]:
        """Logits of each region in input pixels."""
        return self.decode(self.detector.features(images), regions)

    def decode(self, pyramid: Pyramid, regions: Regions) -> Float[Tensor, "r c H W"]:
        """Logits of each region in input pixels, from features that were computed before."""
        logits = self.score(pyramid, regions)
        if logits.shape[2:] == pyramid.size:
            return logits
        return F.interpolate(logits, size=pyramid.size, mode="bilinear", align_corners=False)

    def score(self, pyramid: Pyramid, regions: Regions) -> Float[Tensor, "r c h w"]:
        """Logits of each region at the decoder's own resolution."""
        return self.head(self.decoder.forward(attend(pyramid, regions, self.rounding)))


def build_dasnet(
    num_classes: int,
    detector: str = "ssd320_vgg16",
    detector_options: Mapping[str, Any] | None = None,
    decoder: str = "light",
    decoder_options: Mapping[str, Any] | None = None,
    rounding: Rounding = "cover",
    head: Callable[[int], nn.Module] = SemanticHead,
    frozen: bool = True,
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
    return DASNet(eyes, built, head(built.out_channels), rounding).to(memory_format=torch.channels_last)
