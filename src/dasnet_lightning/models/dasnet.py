"""DASNet, the network of the paper (section 1): detect boxes, mask the features outside of them, segment inside of them.

A detector finds boxes. The decoder then separates the objects in the boxes from the background, on feature maps that are
zero everywhere else. One decode handles one *region*: all boxes of one class in an image for semantic segmentation, or a
single box for instance segmentation. The decoder does not know the class of a region. So all classes share its weights, and
the masks of a few objects can train it. A mask has the class of its boxes.

The steps, for b images of H x W pixels and r regions (h x w: cells of a feature map):

1. `detector.features`: images [b 3 H W] -> pyramid with levels [b c_i h_i w_i], finest first. The only backbone pass.
2. `detector.detect`: pyramid -> boxes, labels and scores of each image. Training takes ground-truth boxes instead.
3. `regions_by_class` or `regions_by_instance`: boxes -> r regions.
4. `attend`: pyramid, regions -> pyramid with levels [r c_i h_i w_i], zero outside the boxes of each region.
5. `decoder`: attended pyramid -> features [r c h w].
6. `head`: features -> logits [r c' h w]. They are background and foreground, or 2 k k position-sensitive maps.
7. `to_pixels`: logits [r c' h w] -> logits [r c' H W].

`DASNet.forward` runs steps 1 and 4 to 7; the regions come from the caller. Stage one trains the detector. Stage two
freezes it and trains the decoder and the head.

This file is the definition, on whole maps. `models.local_decoding` computes the same numbers only around the boxes.
`models.semantic` and `models.instance` turn them into class maps and masks.
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
    """Detector, decoder and head; all regions of a batch are decoded together.

    Args:
        detector: computes the pyramid and finds boxes.
        decoder: turns the attended pyramid of each region into features.
        head: turns the features into logits.
        rounding: whether the attention keeps every cell that a box touches ("cover") or only cells whose index lies in
            the box ("inside"); see `functional.attention.box_attention`.
        soft_attention: 0..1. At 0 a region is decoded once, with attention by boxes as in the paper. Above 0 a second
            decode follows (paper section 10, class-specific features at pixel level). Its features inside the boxes are
            weighted by the foreground of the first: a cell without foreground keeps 1 - soft_attention.
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
            raise ConfigError(f"soft_attention is {soft_attention}, expected a number between 0 and 1")
        self.detector = detector
        self.decoder = decoder
        self.head = head
        self.rounding = rounding
        self.soft_attention = soft_attention

    def forward(self, images: Images, regions: Regions) -> Float[Tensor, "r c H W"]:
        """Return the logits of each region in input pixels."""
        pyramid = self.detector.features(images)
        return self.decode(pyramid, regions)

    def decode(self, pyramid: Pyramid, regions: Regions) -> Float[Tensor, "r c H W"]:
        """Return the logits of each region in input pixels, from features of the detector."""
        return to_pixels(self.score(pyramid, regions), pyramid.size)

    def score(self, pyramid: Pyramid, regions: Regions) -> Float[Tensor, "r c h w"]:
        """Return the logits of each region at the stride of the decoder."""
        return self.passes(pyramid, regions)[-1]

    def passes(self, pyramid: Pyramid, regions: Regions) -> tuple[Float[Tensor, "r c h w"], ...]:
        """Return the logits of every decode; the last are the result. Training applies the loss to each.

        The foreground of the first decode is detached, so the loss of the second does not train the first.
        """
        logits = self._segment(attend(pyramid, regions, self.rounding))
        if self.soft_attention == 0:
            return (logits,)
        return logits, self._segment(self._attend_softly(pyramid, regions, logits))

    def attend(self, pyramid: Pyramid, regions: Regions) -> Pyramid:
        """Return the attended pyramid that the last decode reads."""
        attended = attend(pyramid, regions, self.rounding)
        if self.soft_attention == 0:
            return attended
        return self._attend_softly(pyramid, regions, self._segment(attended))

    def _segment(self, attended: Pyramid) -> Float[Tensor, "r c h w"]:
        features = self.decoder(attended)
        return self.head(features)

    def _attend_softly(self, pyramid: Pyramid, regions: Regions, logits: Float[Tensor, "r c h w"]) -> Pyramid:
        foreground = self.head.foreground(logits.detach(), regions, pyramid.size)
        return attend(pyramid, regions, self.rounding, 1 - self.soft_attention * (1 - foreground))


def to_pixels(logits: Float[Tensor, "r c h w"], size: tuple[int, int]) -> Float[Tensor, "r c H W"]:
    """Resize logits bilinearly to the (H, W) of the input."""
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
    """Build the network of stage two, in channels-last memory format.

    Args:
        num_classes: number of classes, background included.
        detector: a name in `DETECTORS`.
        detector_options: go to the detector's builder.
        decoder: a name in `DECODERS`; it is built to fit the detector's pyramid.
        decoder_options: go to the decoder's builder.
        rounding: see `DASNet`.
        head: builds the head for the number of the decoder's channels.
        frozen: freeze the detector; False is for joint training.
        soft_attention: see `DASNet`.
    """
    trainable_detector = build_detector(detector, num_classes, **(detector_options or {}))
    region_decoder = build_decoder(
        decoder,
        trainable_detector.out_channels,
        trainable_detector.strides,
        trainable_detector.pool_shapes,
        **(decoder_options or {}),
    )
    network = DASNet(
        FrozenDetector(trainable_detector) if frozen else trainable_detector,
        region_decoder,
        head(region_decoder.out_channels),
        rounding,
        soft_attention,
    )
    return network.to(memory_format=torch.channels_last)
