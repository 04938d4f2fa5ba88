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

A decoder of boxes (`zoom`) replaces steps 4 to 7. Each box is attended to alone and decoded on a grid of its window. The
logits of a region are the best of its boxes (`DASNet.decode`).

This file is the definition, on whole maps. `models.local_decoding` computes the same numbers only around the boxes.
`models.box_decoding` reads the grids of a decoder of boxes in the pixels of an image. `models.semantic` and
`models.instance` turn both into class maps and masks.
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
from dasnet_lightning.functional.box_grids import box_windows_of, paste_grids
from dasnet_lightning.nn.decoder import BoxDecoder, Decoder, build_decoder
from dasnet_lightning.nn.heads import Head, MapHead, SemanticHead, ShapeHead
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
            weighted by the foreground of the first: a cell without foreground keeps 1 - soft_attention. A decoder of
            boxes takes 0 only.

    Raises:
        ConfigError: soft_attention is out of range, or the head or soft_attention does not fit the decoder.
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
        by_box = isinstance(decoder, BoxDecoder)
        if by_box and soft_attention:
            raise ConfigError(
                "soft_attention decodes maps twice, and the decoder decodes boxes: set soft_attention to 0"
            )
        if by_box != isinstance(head, ShapeHead):
            raise ConfigError(
                f"{type(head).__name__} does not fit {type(decoder).__name__}: ShapeHead is for boxes only"
            )
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
        scores = self.score(pyramid, regions)
        if isinstance(self.decoder, BoxDecoder):
            windows = box_windows_of(regions.boxes, self.decoder.margin)
            return paste_grids(scores[:, 0], windows, regions, pyramid.size)[:, None]
        return to_pixels(scores, pyramid.size)

    def score(self, pyramid: Pyramid, regions: Regions) -> Float[Tensor, "m c h w"]:
        """Return the logits of each region at the stride of the decoder; of a decoder of boxes, those of each box."""
        return self.passes(pyramid, regions)[-1]

    def passes(self, pyramid: Pyramid, regions: Regions) -> tuple[Float[Tensor, "m c h w"], ...]:
        """Return the logits of every decode; the last are the result. Training applies the loss to each.

        The foreground of the first decode is detached, so the loss of the second does not train the first.
        """
        if isinstance(self.decoder, BoxDecoder):
            return (self.head(self.decoder(pyramid, regions, self.rounding)),)
        logits = self._segment(attend(pyramid, regions, self.rounding))
        if self.soft_attention == 0:
            return (logits,)
        return logits, self._segment(self._attend_softly(pyramid, regions, logits))

    def attend(self, pyramid: Pyramid, regions: Regions) -> Pyramid:
        """Return the attended pyramid that the last decode of a decoder of maps reads."""
        attended = attend(pyramid, regions, self.rounding)
        if self.soft_attention == 0:
            return attended
        return self._attend_softly(pyramid, regions, self._segment(attended))

    def _segment(self, attended: Pyramid) -> Float[Tensor, "r c h w"]:
        features = self.decoder(attended)
        return self.head(features)

    def _attend_softly(self, pyramid: Pyramid, regions: Regions, logits: Float[Tensor, "r c h w"]) -> Pyramid:
        assert isinstance(self.head, MapHead)
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
    head: Callable[[int], MapHead] = SemanticHead,
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
        head: builds the head for the channels of a decoder of maps. A decoder of boxes always has a `ShapeHead`.
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
        (ShapeHead if isinstance(region_decoder, BoxDecoder) else head)(region_decoder.out_channels),
        rounding,
        soft_attention,
    )
    return network.to(memory_format=torch.channels_last)
