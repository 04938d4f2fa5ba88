"""What a Faster R-CNN is put together from: a pyramid, anchors, a box head, and how many proposals and boxes it keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from dasnet_lightning.detectors.faster_rcnn import FasterRCNN, Float32RPNHead, IgnoringRoIHeads, IgnoringRPN
from dasnet_lightning.detectors.fpn import FPN
from dasnet_lightning.detectors.layers import parse_size

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
