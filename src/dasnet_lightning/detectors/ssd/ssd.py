"""SSD for any backbone, composed of a backbone, an anchor layout and one head for each head level.

The backbone returns all levels of the pyramid. Boxes are predicted at the `head_levels`; the other levels are for the
decoder. A head returns anchors * (num_classes + 4) channels: for each anchor the class logits, then the offsets.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import batched_nms

from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, make_anchors
from dasnet_lightning.detectors.ssd.multibox import multibox_loss
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.boxes import clip_boxes, decode_boxes
from dasnet_lightning.functional.pooling import PoolShape
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target

MIN_SIDE = 1e-2  # pixels; a smaller box lies outside of the image


@runtime_checkable
class Backbone(Protocol):
    """Maps normalized images to levels and max-pooling switches, both finest first; the switches may be None."""

    strides: tuple[int, ...]
    out_channels: tuple[int, ...]

    def __call__(self, images: Images) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]: ...


class SSD(Detector):
    """Single-shot detector (paper.md section 6).

    Args:
        backbone: returns all levels of the pyramid.
        heads: one module for each head level; maps it to anchors * (num_classes + 4) channels of the same size.
        anchors: the anchor shapes of each head level.
        head_levels: indices of the levels that predict boxes.
        num_classes: number of classes, background included.
        image_size: (H, W) that the detector is made for; other sizes work too.
        mean: mean of the backbone's pixels, RGB in 0..1.
        std: standard deviation of the backbone's pixels.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of candidates of each class before the NMS.
        detections_per_image: number of detections of an image.
        pool_shapes: the poolings whose switches the backbone returns, finest first.
        sigmoid: score each class by its own sigmoid and train it by binary cross-entropy, instead of a softmax.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        heads: Sequence[nn.Module],
        anchors: AnchorLayout,
        head_levels: tuple[int, ...],
        num_classes: int,
        image_size: tuple[int, int],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        score_threshold: float = 0.01,
        nms_threshold: float = 0.45,
        top_k: int = 400,
        detections_per_image: int = 200,
        pool_shapes: tuple[PoolShape, ...] | None = None,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        if not len(heads) == len(anchors.shapes) == len(head_levels):
            raise ConfigError(
                f"{len(heads)} heads, {len(anchors.shapes)} anchor levels and {len(head_levels)} head levels, "
                "expected one of each for every level that predicts boxes"
            )
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.anchors = anchors
        self.head_levels = head_levels
        self.num_classes = num_classes
        self.image_size = image_size
        self.strides = backbone.strides
        self.out_channels = backbone.out_channels
        self.pool_shapes = pool_shapes
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.top_k = top_k
        self.detections_per_image = detections_per_image
        self.sigmoid = sigmoid
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Images) -> Pyramid:
        """See `Detector.features`."""
        levels, switches = self.backbone((images - self.mean) / self.std)
        size = (images.shape[-2], images.shape[-1])
        return Pyramid(levels=levels, strides=self.strides, size=size, switches=switches)

    def predict(self, pyramid: Pyramid) -> tuple[Float[Tensor, "b a c"], Float[Tensor, "b a 4"], Float[Tensor, "a 4"]]:
        """Run the heads and return class logits, offsets (both float32) and anchors."""
        logits, offsets, cells = self.run_heads(pyramid)
        return logits, offsets, make_anchors(self.anchors, pyramid.size, cells, offsets.device)

    def run_heads(
        self, pyramid: Pyramid
    ) -> tuple[Float[Tensor, "b a c"], Float[Tensor, "b a 4"], tuple[tuple[int, int], ...]]:
        """Return class logits and offsets (both float32) of all anchors, and the (rows, columns) of each head level."""
        outputs = [head(pyramid.levels[level]) for head, level in zip(self.heads, self.head_levels, strict=True)]
        cells = tuple((output.shape[-2], output.shape[-1]) for output in outputs)
        rows = [output.permute(0, 2, 3, 1).reshape(len(output), -1, self.num_classes + 4) for output in outputs]
        logits, offsets = torch.cat(rows, dim=1).float().split([self.num_classes, 4], dim=2)
        return logits, offsets, cells

    def class_scores(self, logits: Float[Tensor, "b a c"]) -> Float[Tensor, "b a c2"]:
        """Return the scores of the foreground classes, 0..1."""
        return (logits.sigmoid() if self.sigmoid else logits.softmax(dim=2))[..., 1:]

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """See `Detector.detect`."""
        logits, offsets, anchors = self.predict(pyramid)
        scores = self.class_scores(logits).transpose(1, 2)
        best, index = scores.topk(min(self.top_k, len(anchors)), dim=2)
        return tuple(self._select(*image, anchors, pyramid.size) for image in zip(best, index, offsets, strict=True))

    def _select(
        self,
        scores: Float[Tensor, "c k"],
        index: Tensor,
        offsets: Float[Tensor, "a 4"],
        anchors: Float[Tensor, "a 4"],
        size: tuple[int, int],
    ) -> Detections:
        """Return the detections of one image.

        Args:
            scores: the k best scores of each foreground class.
            index: their anchors, [c k].
            offsets: offsets of all anchors.
            anchors: all anchors.
            size: (H, W) of the image.
        """
        passing = scores > self.score_threshold
        scores, index, labels = scores[passing], index[passing], passing.nonzero()[:, 0] + 1
        boxes = clip_boxes(decode_boxes(offsets[index], anchors[index]), size)
        kept = ((boxes[:, 2:] - boxes[:, :2]) > MIN_SIDE).all(dim=1)
        boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
        kept = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.detections_per_image]
        return Detections(boxes=boxes[kept], labels=labels[kept], scores=scores[kept])

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Return the classification and the box loss (`multibox_loss`)."""
        logits, offsets, anchors = self.predict(pyramid)
        classification, box = multibox_loss(logits, offsets, anchors, targets, sigmoid=self.sigmoid)
        return {"classification": classification, "box": box}
