"""Faster R-CNN over any feature pyramid, from torchvision's parts: proposals and box heads work on the given pyramid.

torchvision's own model resizes its input, runs its backbone inside, and returns losses or boxes by `self.training`.
Here the pyramid comes from outside, and `detect` and `losses` answer the same in either mode. Box arithmetic stays in
float32 under autocast, where torchvision would take the feature maps' dtype for its anchors. Its sampling of proposals
in training draws from torch's global generator.

What a Faster R-CNN is put together from: a pyramid, anchors, a box head, and how many proposals and boxes it keeps.
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


class Float32RPNHead(RPNHead):
    """The proposal head with float32 answers, so that the boxes made from them are exact under autocast."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, offsets = super().forward(x)
        return [map_.float() for map_ in objectness], [map_.float() for map_ in offsets]


class IgnoringRPN(RegionProposalNetwork):
    """A proposal network for which anchors mostly inside an ignored object are not negatives."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        real = [{"boxes": target["boxes"][target["labels"] != IGNORED]} for target in targets]
        labels, matched = super().assign_targets_to_anchors(anchors, real)
        for image, target in enumerate(targets):
            _leave_out(labels[image], anchors[image], target["boxes"][target["labels"] == IGNORED])
        return labels, matched


class IgnoringRoIHeads(RoIHeads):
    """Box heads for which proposals mostly inside an ignored object are not negatives; real objects stand first."""

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        real = [labels != IGNORED for labels in gt_labels]
        matched, labels = super().assign_targets_to_proposals(
            proposals,
            [boxes[keep] for boxes, keep in zip(gt_boxes, real, strict=True)],
            [labels[keep] for labels, keep in zip(gt_labels, real, strict=True)],
        )
        for image, keep in enumerate(real):
            _leave_out(labels[image], proposals[image], gt_boxes[image][~keep])
        return matched, labels


def _leave_out(labels: Tensor, boxes: Tensor, ignored: Tensor) -> None:
    """Change the label of negatives that lie mostly inside an ignored box, in place."""
    labels[inside_ignored(boxes, ignored) & (labels == 0)] = IGNORED


@contextmanager
def _training(module: nn.Module, mode: bool) -> Iterator[None]:
    """Set the one flag that torchvision's proposal network reads; its children are left as they are."""
    before, module.training = module.training, mode
    try:
        yield
    finally:
        module.training = before


class FasterRCNN(Detector):
    """Two-stage detector over a feature pyramid, torchvision's proposal network and its box heads.

    The proposal network sees all levels but the raw ones; `roi_heads` pools from those whose number it names.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: FPN,
        rpn: IgnoringRPN,
        roi_heads: IgnoringRoIHeads,
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
        """Normalise the images (RGB, 0..1) and run the backbone once."""
        levels = self.backbone((images - self.mean) / self.std)
        return Pyramid(levels=levels, strides=self.strides, size=(images.shape[-2], images.shape[-1]))

    def _propose(
        self, pyramid: Pyramid, targets: list[dict[str, Tensor]] | None
    ) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
        """(maps by torchvision's names, proposals of each image, losses of the proposal network)."""
        levels = pyramid.levels[self.backbone.raw_levels :]
        maps = {str(number): level.float() for number, level in enumerate(levels)}
        number = len(levels[0])
        images = ImageList(torch.empty(number, 3, *pyramid.size, device="meta"), [pyramid.size] * number)
        with _training(self.rpn, targets is not None):
            proposals, losses = self.rpn(images, maps, targets)
        return maps, proposals, losses

    def _classify(
        self, maps: dict[str, Tensor], proposals: list[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Class logits and offsets of all proposals, float32."""
        regions = self.roi_heads.box_roi_pool(maps, proposals, [size] * len(proposals))
        logits, offsets = self.roi_heads.box_predictor(self.roi_heads.box_head(regions))
        return logits.float(), offsets.float()

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """Boxes in input pixels, clipped to the image, after NMS, best first; one entry for each image."""
        maps, proposals, _ = self._propose(pyramid, None)
        logits, offsets = self._classify(maps, proposals, pyramid.size)
        sizes = [pyramid.size] * len(proposals)
        images = zip(*self.roi_heads.postprocess_detections(logits, offsets, proposals, sizes), strict=True)
        return tuple(Detections(boxes=boxes, labels=labels, scores=scores) for boxes, scores, labels in images)

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Losses of the proposal network and of the box head."""
        truth = [torchvision_target(target) for target in targets]
        maps, proposals, rpn = self._propose(pyramid, truth)
        proposals, _, labels, wanted = self.roi_heads.select_training_samples(proposals, truth)
        logits, offsets = self._classify(maps, proposals, pyramid.size)
        if len(logits) > 0:
            classification, box = fastrcnn_loss(logits, offsets, labels, wanted)
        else:  # all proposals lie in ignored objects: a mean over nothing would be NaN
            classification, box = logits.sum(), offsets.sum()
        return {
            "objectness": rpn["loss_objectness"],
            "proposal_box": rpn["loss_rpn_box_reg"],
            "classification": classification,
            "box": box,
        }


POOLED = 7  # cells of a region each way


@dataclass(frozen=True)
class Choices:
    """What the proposal network and the box head keep.

    candidates: proposals that enter the NMS, in training and in `detect`; proposals: that leave it. box_samples:
    proposals of each image that the box head learns from. proposal_threshold: least objectness. The rest is about
    `detect`.
    """

    candidates: tuple[int, int]
    proposals: tuple[int, int]
    box_samples: int
    score_threshold: float
    nms_threshold: float
    detections_per_image: int
    proposal_threshold: float = 0.0


def compose(
    backbone: FPN,
    anchors: AnchorGenerator,
    box_head: nn.Module,
    width: int,
    num_classes: int,
    image_size: int | Sequence[int],
    choices: Choices,
    rpn_depth: int = 1,
) -> FasterRCNN:
    """A Faster R-CNN of these parts.

    box_head: from a region's 7x7 cells to `width` features. rpn_depth: convolutions of the proposal network.
    """
    rpn = IgnoringRPN(
        anchors,
        Float32RPNHead(backbone.out_channels[-1], anchors.num_anchors_per_location()[0], rpn_depth),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(("training", "testing"), choices.candidates, strict=True)),
        post_nms_top_n=dict(zip(("training", "testing"), choices.proposals, strict=True)),
        nms_thresh=0.7,
        score_thresh=choices.proposal_threshold,
    )
    path_levels = [str(number) for number in range(len(backbone.fpn.inner_blocks))]
    roi_heads = IgnoringRoIHeads(
        MultiScaleRoIAlign(path_levels, output_size=POOLED, sampling_ratio=2),
        box_head,
        FastRCNNPredictor(width, num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=choices.box_samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=choices.score_threshold,
        nms_thresh=choices.nms_threshold,
        detections_per_img=choices.detections_per_image,
    )
    return FasterRCNN(backbone, rpn, roi_heads, num_classes, parse_size(image_size))
