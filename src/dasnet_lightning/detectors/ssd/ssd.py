"""One SSD for every backbone: it is composed of a backbone, an anchor layout and one head for each head level.

The backbone returns all levels of the pyramid; `head_levels` says at which of them the boxes are predicted, the others
are for the decoder. Each head gives anchors * (num_classes + 4) channels: class logits, then offsets, anchor by anchor.
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

MIN_SIDE = 1e-2  # pixels; what is left of a box outside the image is no detection


@runtime_checkable
class Backbone(Protocol):
    """Normalised images -> (levels finest first, max-pooling switches finest first or None)."""

    strides: tuple[int, ...]
    out_channels: tuple[int, ...]

    def __call__(self, images: Images) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]: ...


class SSD(Detector):
    """Single-shot detector (paper.md section 6).

    heads: one module for each of head_levels, from a level to anchors * (num_classes + 4) channels of the same size.
    image_size: the (H, W) it is made for; others work too. mean, std: of the backbone's pixels, RGB in 0..1.
    score_threshold, nms_threshold, top_k (candidates of each class that enter the NMS), detections_per_image: what
    `detect` keeps. pool_shapes: of the poolings whose switches the backbone gives, finest first.
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
    ) -> None:
        super().__init__()
        if not len(heads) == len(anchors.shapes) == len(head_levels):
            raise ConfigError(
                f"{len(heads)} heads, {len(anchors.shapes)} anchor levels and {len(head_levels)} head levels: "
                "give one of each for every level that predicts boxes"
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
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Images) -> Pyramid:
        """Normalise the images (RGB, 0..1) and run the backbone once."""
        levels, switches = self.backbone((images - self.mean) / self.std)
        size = (images.shape[-2], images.shape[-1])
        return Pyramid(levels=levels, strides=self.strides, size=size, switches=switches)

    def predict(self, pyramid: Pyramid) -> tuple[Float[Tensor, "b a c"], Float[Tensor, "b a 4"], Float[Tensor, "a 4"]]:
        """Class logits, offsets (both float32) and the anchors that they belong to."""
        maps = [head(pyramid.levels[level]) for head, level in zip(self.heads, self.head_levels, strict=True)]
        cells = tuple((map_.shape[-2], map_.shape[-1]) for map_ in maps)
        rows = [map_.permute(0, 2, 3, 1).reshape(len(map_), -1, self.num_classes + 4) for map_ in maps]
        logits, offsets = torch.cat(rows, dim=1).float().split([self.num_classes, 4], dim=2)
        return logits, offsets, make_anchors(self.anchors, pyramid.size, cells, offsets.device)

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """Boxes in input pixels, clipped to the image, after per-class NMS, best first; one entry for each image."""
        logits, offsets, anchors = self.predict(pyramid)
        scores = logits.softmax(dim=2)[..., 1:].transpose(1, 2)
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
        """The detections of one image from the best anchors (`index`, [c k]) of each foreground class."""
        passing = scores > self.score_threshold
        scores, index, labels = scores[passing], index[passing], passing.nonzero()[:, 0] + 1
        boxes = clip_boxes(decode_boxes(offsets[index], anchors[index]), size)
        kept = ((boxes[:, 2:] - boxes[:, :2]) > MIN_SIDE).all(dim=1)
        boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
        kept = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.detections_per_image]
        return Detections(boxes=boxes[kept], labels=labels[kept], scores=scores[kept])

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Multibox loss (functional.multibox): classification and box."""
        logits, offsets, anchors = self.predict(pyramid)
        classification, box = multibox_loss(logits, offsets, anchors, targets)
        return {"classification": classification, "box": box}
