"""Faster R-CNN over any feature pyramid, from torchvision's proposal network and box heads.

torchvision's own model resizes its input, runs its backbone inside, and returns losses or boxes depending on
`self.training`. Here the pyramid comes from outside, and `detect` and `losses` work the same in either mode. Box arithmetic
stays in float32 under autocast; torchvision would take the dtype of the feature maps for its anchors. In training
torchvision samples proposals with torch's global generator.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.detectors.fpn import FPN
from dasnet_lightning.detectors.layers import IMAGENET_MEAN, IMAGENET_STD, parse_size
from dasnet_lightning.detectors.torchvision_targets import IGNORED, inside_ignored, torchvision_target
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target

POOLED = 7  # cells along each side of a pooled proposal


class FasterRCNN(Detector):
    """Two-stage detector over a feature pyramid.

    Args:
        backbone: the pyramid. The proposal network reads all levels but the raw ones.
        rpn: the proposal network.
        roi_heads: the box heads; they pool from the levels that their box_roi_pool names.
        num_classes: number of classes, background included.
        image_size: (H, W) of the images.
        mean: mean of the pixels, RGB in 0..1.
        std: standard deviation of the pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: FPN,
        rpn: "IgnoringRPN",
        roi_heads: "IgnoringRoIHeads",
        num_classes: int,
        image_size: tuple[int, int],
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.num_classes = num_classes
        self.image_size = image_size
        self.strides = backbone.strides
        self.out_channels = backbone.out_channels
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Images) -> Pyramid:
        """See `Detector.features`."""
        levels = self.backbone((images - self.mean) / self.std)
        return Pyramid(levels=levels, strides=self.strides, size=(images.shape[-2], images.shape[-1]))

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """See `Detector.detect`."""
        maps, proposals, _ = self._propose(pyramid, None)
        logits, offsets = self._classify(maps, proposals, pyramid.size)
        sizes = [pyramid.size] * len(proposals)
        images = zip(*self.roi_heads.postprocess_detections(logits, offsets, proposals, sizes), strict=True)
        return tuple(Detections(boxes=boxes, labels=labels, scores=scores) for boxes, scores, labels in images)

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Return the losses of the proposal network and of the box head."""
        marked_targets = [torchvision_target(target) for target in targets]
        maps, proposals, rpn_losses = self._propose(pyramid, marked_targets)
        proposals, _, labels, box_targets = self.roi_heads.select_training_samples(proposals, marked_targets)
        logits, offsets = self._classify(maps, proposals, pyramid.size)
        if len(logits) > 0:
            classification, box = fastrcnn_loss(logits, offsets, labels, box_targets)
        else:  # all proposals lie in ignored objects, and a mean over no samples would be NaN
            classification, box = logits.sum(), offsets.sum()
        return {
            "objectness": rpn_losses["loss_objectness"],
            "proposal_box": rpn_losses["loss_rpn_box_reg"],
            "classification": classification,
            "box": box,
        }

    def _propose(
        self, pyramid: Pyramid, targets: list[dict[str, Tensor]] | None
    ) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
        """Return the levels by torchvision's names, the proposals of each image, and the losses if there are targets."""
        levels = pyramid.levels[self.backbone.raw_levels :]
        maps = {str(number): level.float() for number, level in enumerate(levels)}
        num_images = len(levels[0])
        images = ImageList(torch.empty(num_images, 3, *pyramid.size, device="meta"), [pyramid.size] * num_images)
        with _training_mode(self.rpn, targets is not None):
            proposals, losses = self.rpn(images, maps, targets)
        return maps, proposals, losses

    def _classify(
        self, maps: dict[str, Tensor], proposals: list[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return the class logits and offsets of all proposals, in float32."""
        pooled = self.roi_heads.box_roi_pool(maps, proposals, [size] * len(proposals))
        logits, offsets = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits.float(), offsets.float()


@dataclass(frozen=True)
class SelectionOptions:
    """How many proposals and boxes a Faster R-CNN keeps.

    Attributes:
        candidates: number of proposals before NMS, in training and in `detect`.
        proposals: number of proposals after NMS, in training and in `detect`.
        box_samples: number of proposals of each image that the box head is trained on.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS of `detect` suppresses a box of the same class.
        detections_per_image: number of detections of an image.
        proposal_threshold: lowest objectness of a proposal.
    """

    candidates: tuple[int, int]
    proposals: tuple[int, int]
    box_samples: int
    score_threshold: float
    nms_threshold: float
    detections_per_image: int
    proposal_threshold: float = 0.0


def build_faster_rcnn(
    backbone: FPN,
    anchors: AnchorGenerator,
    box_head: nn.Module,
    width: int,
    num_classes: int,
    image_size: int | Sequence[int],
    options: SelectionOptions,
    rpn_depth: int = 1,
) -> FasterRCNN:
    """Build a Faster R-CNN from its parts.

    Args:
        backbone: the pyramid.
        anchors: the anchors of all levels but the raw ones.
        box_head: maps the 7x7 cells of a pooled proposal to `width` features.
        width: number of these features.
        num_classes: number of classes, background included.
        image_size: side of square images or (H, W), in pixels.
        options: how many proposals and boxes to keep.
        rpn_depth: number of convolutions of the proposal network.
    """
    rpn = _build_rpn(backbone, anchors, options, rpn_depth)
    roi_heads = _build_roi_heads(backbone, box_head, width, num_classes, options)
    return FasterRCNN(backbone, rpn, roi_heads, num_classes, parse_size(image_size))


def _build_rpn(backbone: FPN, anchors: AnchorGenerator, options: SelectionOptions, depth: int) -> "IgnoringRPN":
    return IgnoringRPN(
        anchors,
        Float32RPNHead(backbone.out_channels[-1], anchors.num_anchors_per_location()[0], depth),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(("training", "testing"), options.candidates, strict=True)),
        post_nms_top_n=dict(zip(("training", "testing"), options.proposals, strict=True)),
        nms_thresh=0.7,
        score_thresh=options.proposal_threshold,
    )


def _build_roi_heads(
    backbone: FPN, box_head: nn.Module, width: int, num_classes: int, options: SelectionOptions
) -> "IgnoringRoIHeads":
    path_levels = [str(number) for number in range(len(backbone.fpn.inner_blocks))]
    return IgnoringRoIHeads(
        MultiScaleRoIAlign(path_levels, output_size=POOLED, sampling_ratio=2),
        box_head,
        FastRCNNPredictor(width, num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=options.box_samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=options.score_threshold,
        nms_thresh=options.nms_threshold,
        detections_per_img=options.detections_per_image,
    )


class IgnoringRPN(RegionProposalNetwork):
    """Proposal network that does not train on negatives mostly inside an ignored object."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Match anchors to the real objects, then ignore negatives inside ignored objects."""
        real = [{"boxes": target["boxes"][target["labels"] != IGNORED]} for target in targets]
        labels, matched = super().assign_targets_to_anchors(anchors, real)
        for image, target in enumerate(targets):
            _ignore_negatives(labels[image], anchors[image], target["boxes"][target["labels"] == IGNORED])
        return labels, matched


class IgnoringRoIHeads(RoIHeads):
    """Box heads that do not train on negatives mostly inside an ignored object; real objects must come first."""

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Match proposals to the real objects, then ignore negatives inside ignored objects."""
        real = [labels != IGNORED for labels in gt_labels]
        matched, labels = super().assign_targets_to_proposals(
            proposals,
            [boxes[keep] for boxes, keep in zip(gt_boxes, real, strict=True)],
            [labels[keep] for labels, keep in zip(gt_labels, real, strict=True)],
        )
        for image, keep in enumerate(real):
            _ignore_negatives(labels[image], proposals[image], gt_boxes[image][~keep])
        return matched, labels


class Float32RPNHead(RPNHead):
    """Proposal head with float32 outputs, so that boxes are exact under autocast."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the objectness and the offsets of each level."""
        objectness, offsets = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in offsets]


def _ignore_negatives(labels: Tensor, boxes: Tensor, ignored: Tensor) -> None:
    """Set the label of negatives that lie mostly inside an ignored box to IGNORED, in place."""
    labels[inside_ignored(boxes, ignored) & (labels == 0)] = IGNORED


@contextmanager
def _training_mode(module: nn.Module, mode: bool) -> Iterator[None]:
    """Set `module.training`, the only flag that torchvision's proposal network reads; its children are not changed."""
    before, module.training = module.training, mode
    try:
        yield
    finally:
        module.training = before
