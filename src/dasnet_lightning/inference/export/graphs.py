"""The two graphs of an exported network, as modules whose inputs and outputs are plain tensors.

The image graph turns one image into the levels that the decoder reads and the boxes and scores of all anchors. All its
shapes are fixed; the NMS stays outside. The mask graph turns levels and boxes into scores, for any number of boxes, none
included. Neither has a loop over boxes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.detectors.ssd.anchors import make_anchors
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.functional.attention import box_cells
from dasnet_lightning.functional.boxes import clip_boxes, decode_boxes
from dasnet_lightning.models.dasnet import DASNet, to_pixels
from dasnet_lightning.nn.decoder import BoxDecoder
from dasnet_lightning.nn.decoder.zoom import ZoomDecoder
from dasnet_lightning.nn.heads import SemanticHead
from dasnet_lightning.types import Pyramid, Regions


def unwrap(detector: Detector) -> Detector:
    """Return the detector inside a frozen one."""
    return detector.detector if isinstance(detector, FrozenDetector) else detector


def read_levels(model: DASNet) -> tuple[int, ...]:
    """Return the indices of the pyramid's levels that the decoder reads."""
    decoder = model.decoder
    return decoder.levels if isinstance(decoder, ZoomDecoder) else tuple(range(len(model.detector.strides)))


class ImageGraph(nn.Module):
    """One image [1, 3, H, W] (RGB, 0..1) to the decoder's levels and, for SSD, boxes [a, 4] and scores [a, c].

    Boxes are xyxy in input pixels and clipped to the image. Scores have one column for each foreground class.
    """

    anchors: Tensor

    def __init__(self, model: DASNet) -> None:
        super().__init__()
        self.detector = unwrap(model.detector)
        self.levels = read_levels(model)
        self.switches = 0 if isinstance(model.decoder, BoxDecoder) else len(self.detector.pool_shapes or ())
        self.size = self.detector.image_size
        if isinstance(self.detector, SSD):
            pyramid = self.detector.features(next(model.parameters()).new_zeros(1, 3, *self.size))
            _, offsets, cells = self.detector.run_heads(pyramid)
            anchors = make_anchors(self.detector.anchors, self.size, cells, offsets.device)
            self.register_buffer("anchors", anchors.clone(), persistent=False)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        detections = ["boxes", "scores"] if isinstance(self.detector, SSD) else []
        switches = [f"switches_{index}" for index in range(self.switches)]
        return [*(f"level_{level}" for level in self.levels), *switches, *detections]

    def forward(self, image: Float[Tensor, "1 3 H W"]) -> tuple[Tensor, ...]:
        """Compute the outputs."""
        pyramid = self.detector.features(image)
        levels = (*(pyramid.levels[level] for level in self.levels), *(pyramid.switches or ())[: self.switches])
        if not isinstance(self.detector, SSD):
            return levels
        logits, offsets, _ = self.detector.run_heads(pyramid)
        boxes = clip_boxes(decode_boxes(offsets[0], self.anchors), self.size)
        return (*levels, boxes, self.detector.class_scores(logits)[0])


class BoxMaskGraph(nn.Module):
    """Boxes [n, 4] in input pixels and levels to logits [n, 1, s, s] on the grid of each box."""

    def __init__(self, model: DASNet) -> None:
        super().__init__()
        self.decoder, self.head, self.rounding = model.decoder, model.head, model.rounding
        self.levels, self.strides = read_levels(model), model.detector.strides
        self.size = model.detector.image_size

    def forward(self, boxes: Float[Tensor, "n 4"], *levels: Tensor) -> tuple[Tensor]:
        """Compute the logits."""
        number = boxes.shape[0]
        zeros = torch.zeros(number, dtype=torch.int64, device=boxes.device)
        every = [levels[0]] * len(self.strides)  # the decoder does not read the others
        for index, level in zip(self.levels, levels, strict=True):
            every[index] = level
        regions = Regions(boxes, torch.arange(number, device=boxes.device), zeros, zeros)
        return (self.head(self.decoder(Pyramid(tuple(every), self.strides, self.size), regions, self.rounding)),)


class MapMaskGraph(nn.Module):
    """Boxes [n, 4] in input pixels, members [r, n] and levels to whole maps of each region.

    `members` is 1 where a box belongs to a region. A semantic network returns the foreground probability [r, 1, H, W] in
    input pixels, an instance network its position-sensitive maps [r, 2 k k, h, w].
    """

    def __init__(self, model: DASNet) -> None:
        super().__init__()
        self.decoder, self.head, self.rounding = model.decoder, model.head, model.rounding
        self.strides, self.size = model.detector.strides, model.detector.image_size

    def forward(self, boxes: Float[Tensor, "n 4"], members: Float[Tensor, "r n"], *levels: Tensor) -> tuple[Tensor]:
        """Compute the maps."""
        maps, switches = levels[: len(self.strides)], levels[len(self.strides) :]
        attended = tuple(level * self._attention(boxes, members, level) for level in maps)
        codes = tuple(code.expand(members.shape[0], -1, -1, -1) for code in switches)
        scores = self.head(self.decoder(Pyramid(attended, self.strides, self.size, codes or None)))
        if isinstance(self.head, SemanticHead):
            scores = to_pixels(scores, self.size).softmax(dim=1)[:, 1:2]
        return (scores,)

    def _attention(self, boxes: Tensor, members: Tensor, level: Tensor) -> Float[Tensor, "r 1 h w"]:
        """Return the union of the boxes of each region, as `functional.attention.box_attention`."""
        height, width = level.shape[2:]
        rows = box_cells(boxes[:, 1], boxes[:, 3], self.size[0], height, self.rounding).float()
        columns = box_cells(boxes[:, 0], boxes[:, 2], self.size[1], width, self.rounding).float()
        cells = (rows[:, :, None] * columns[:, None, :]).reshape(-1, height * width)
        return (members @ cells).clamp(max=1).reshape(-1, 1, height, width)


def build_graphs(model: DASNet) -> tuple[ImageGraph, BoxMaskGraph | MapMaskGraph]:
    """Return both graphs of a network, in evaluation mode."""
    masks = BoxMaskGraph(model) if isinstance(model.decoder, BoxDecoder) else MapMaskGraph(model)
    return ImageGraph(model).eval(), masks.eval()
