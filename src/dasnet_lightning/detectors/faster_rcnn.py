"""Faster R-CNN with a ResNet50-FPN, from torchvision's parts: proposals and box heads work on the given pyramid.

torchvision's own model resizes its input, runs its backbone inside, and returns losses or boxes by `self.training`.
Here the pyramid comes from outside, and `detect` and `losses` answer the same in either mode. Box arithmetic stays in
float32 under autocast, where torchvision would take the feature maps' dtype for its anchors. Its sampling of proposals
in training draws from torch's global generator.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.layers import FrozenBatchNorm, parse_size
from dasnet_lightning.detectors.weights import fill, load_state
from dasnet_lightning.functional.boxes import covered_fraction
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target

CHANNELS = 256
ANCHOR_SIDES = (16, 32, 64, 128, 256)  # by level; half of torchvision's, whose images are 800 pixels wide
RATIOS = (0.5, 1.0, 2.0)
PROPOSALS = 1000  # in training, before and after the NMS
MIN_SIDE = 1e-2  # pixels; torchvision takes the log of a box's side
IGNORED = -1  # torchvision's sampler leaves this label out


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
    inside = (covered_fraction(boxes, ignored) > 0.5).any(dim=0)
    labels[inside & (labels == 0)] = IGNORED


@contextmanager
def _training(module: nn.Module, mode: bool) -> Iterator[None]:
    """Set the one flag that torchvision's proposal network reads; its children are left as they are."""
    before, module.training = module.training, mode
    try:
        yield
    finally:
        module.training = before


def _torchvision_target(target: Target) -> dict[str, Tensor]:
    """Boxes and labels with the ignored objects last and marked; boxes without area are left out."""
    order = torch.argsort(target.ignore.to(torch.uint8), stable=True)
    boxes, labels = target.boxes[order].float(), target.labels.masked_fill(target.ignore, IGNORED)[order]
    kept = ((boxes[:, 2:] - boxes[:, :2]) > MIN_SIDE).all(dim=1)
    return {"boxes": boxes[kept], "labels": labels[kept]}


class FasterRCNN(nn.Module):
    """Two-stage detector over an FPN backbone, torchvision's proposal network and its box heads."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: BackboneWithFPN,
        rpn: IgnoringRPN,
        roi_heads: IgnoringRoIHeads,
        num_classes: int,
        image_size: tuple[int, int],
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.num_classes = num_classes
        self.image_size = image_size
        self.strides: tuple[int, ...] = (4, 8, 16, 32, 64)
        self.out_channels: tuple[int, ...] = (CHANNELS,) * 5
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Images) -> Pyramid:
        """Normalise the images (RGB, 0..1) and run the backbone once."""
        maps = self.backbone((images - self.mean) / self.std)
        size = (images.shape[-2], images.shape[-1])
        return Pyramid(levels=tuple(maps.values()), strides=self.strides, size=size)

    def _propose(
        self, pyramid: Pyramid, targets: list[dict[str, Tensor]] | None
    ) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
        """(maps by torchvision's names, proposals of each image, losses of the proposal network)."""
        names = ("0", "1", "2", "3", "pool")
        maps = {name: level.float() for name, level in zip(names, pyramid.levels, strict=True)}
        number = len(pyramid.levels[0])
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
        truth = [_torchvision_target(target) for target in targets]
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


@DETECTORS.register("faster_rcnn_resnet50_fpn")
def build_faster_rcnn_resnet50_fpn(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    freeze_norm: bool | None = None,
    trainable_layers: int | None = None,
    anchor_sides: Sequence[int] = ANCHOR_SIDES,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    top_k: int = 300,
    detections_per_image: int = 100,
) -> FasterRCNN:
    """Faster R-CNN with ResNet50 and a feature pyramid.

    backbone_weights: torchvision's name ("IMAGENET1K_V2") or a file of resnet50. freeze_norm: hold BatchNorm; None
    means where backbone_weights are given. trainable_layers: how many of ResNet's five stages learn; None means three
    with weights and all without. anchor_sides: in pixels, for each of the five levels. top_k: proposals that the box
    head looks at in `detect`.
    """
    pretrained = backbone_weights is not None
    freeze = pretrained if freeze_norm is None else freeze_norm
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm if freeze else nn.BatchNorm2d,
        trainable_layers=(3 if pretrained else 5) if trainable_layers is None else trainable_layers,
    )
    if backbone_weights is not None:
        state = load_state(backbone_weights, "resnet50")
        body = {key: value for key, value in state.items() if not key.startswith("fc.")}
        fill(backbone.body, body, backbone_weights, "the state dict of torchvision's resnet50")
    anchors = AnchorGenerator(tuple((side,) for side in anchor_sides), (RATIOS,) * 5)
    rpn = IgnoringRPN(
        anchors,
        Float32RPNHead(CHANNELS, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": PROPOSALS, "testing": PROPOSALS},
        post_nms_top_n={"training": PROPOSALS, "testing": top_k},
        nms_thresh=0.7,
    )
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    roi_heads = IgnoringRoIHeads(
        pool,
        TwoMLPHead(CHANNELS * 7 * 7, 1024),
        FastRCNNPredictor(1024, num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=256,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        detections_per_img=detections_per_image,
    )
    return FasterRCNN(backbone, rpn, roi_heads, num_classes, parse_size(image_size))
