"""RetinaNet and FCOS on ResNet50 with a feature pyramid, from torchvision's models without their `forward`.

Heads, anchors, matching, losses and the selection of boxes are torchvision's own; only the pyramid comes from outside. It
begins with ResNet's raw level at stride 4, which only the decoder reads; boxes are predicted at strides 8 to 128. Box
arithmetic stays in float32 under autocast.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from dasnet_lightning.detectors.base import DETECTORS, Detector
from dasnet_lightning.detectors.class_rows import ClassHead
from dasnet_lightning.detectors.fpn import CHANNELS, FPN, check_sides, resnet50_fpn
from dasnet_lightning.detectors.layers import IMAGENET_MEAN, IMAGENET_STD, parse_size
from dasnet_lightning.detectors.torchvision_targets import has_area, inside_ignored, split_ignored
from dasnet_lightning.detectors.weights import load_pretrained
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target

STRIDES = (4, 8, 16, 32, 64, 128)
ANCHOR_SIDES = (16, 32, 64, 128, 256)  # pixels, by level; half of torchvision's, whose images are 800 pixels wide
RATIOS = (0.5, 1.0, 2.0)
NORM_GROUPS = 32
LOSSES = {"classification": "classification", "bbox_regression": "box", "bbox_ctrness": "centerness"}
PREDICTORS = {"head.classification_head.cls_logits": 1}
ZERO_LOSS_LOGIT = -1e4  # torchvision's FCOS cannot ignore a point, but a negative with this logit has no loss


class DenseDetector(Detector):
    """One-stage detector over a feature pyramid, with torchvision's heads and losses.

    Args:
        model: torchvision's model with our pyramid as its backbone.
        num_classes: number of classes, background included.
        image_size: (H, W) of the images.
        detections_per_image: number of detections of an image.
        mean: mean of the pixels, RGB in 0..1.
        std: standard deviation of the pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: "LevelRetinaNet | FCOS",
        num_classes: int,
        image_size: tuple[int, int],
        detections_per_image: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.image_size = image_size
        self.detections_per_image = detections_per_image
        self.strides = self.backbone.strides
        self.out_channels = self.backbone.out_channels
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def backbone(self) -> FPN:
        """The pyramid."""
        return self.model.backbone

    def features(self, images: Images) -> Pyramid:
        """See `Detector.features`."""
        levels = self.backbone((images - self.mean) / self.std)
        return Pyramid(levels=levels, strides=self.strides, size=(images.shape[-2], images.shape[-1]))

    def predict(self, pyramid: Pyramid) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """Run the heads.

        Returns:
            torchvision's head outputs in float32, the anchors of each image, and the number of anchors of each level.
        """
        levels = list(pyramid.levels[self.backbone.raw_levels :])
        outputs = {key: value.float() for key, value in self.model.head(levels).items()}
        num_images = len(levels[0])
        images = ImageList(torch.empty(num_images, 3, *pyramid.size, device="meta"), [pyramid.size] * num_images)
        cells = [torch.empty(level.shape[-2:], device=level.device) for level in levels]
        per_cell = self.model.anchor_generator.num_anchors_per_location()
        counts = [cell.numel() * anchors for cell, anchors in zip(cells, per_cell, strict=True)]
        return outputs, self.model.anchor_generator(images, cells), counts

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """See `Detector.detect`."""
        outputs, anchors, counts = self.predict(pyramid)
        outputs["cls_logits"][..., 0] = -torch.inf  # torchvision has a background class, which must never be detected
        detections = self.model.postprocess_detections(
            {key: list(value.split(counts, dim=1)) for key, value in outputs.items()},
            [list(boxes.split(counts)) for boxes in anchors],
            [pyramid.size] * len(anchors),
        )
        return tuple(self._select(item) for item in detections)

    def _select(self, detections: dict[str, Tensor]) -> Detections:
        """Select the best boxes of one image that have an area after clipping."""
        boxes, labels, scores = detections["boxes"], detections["labels"], detections["scores"]
        kept = has_area(boxes).nonzero()[: self.detections_per_image, 0]
        return Detections(boxes=boxes[kept], labels=labels[kept], scores=scores[kept])

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Return the focal loss of the classes and the GIoU loss of the boxes; for FCOS also that of the centerness."""
        outputs, anchors, counts = self.predict(pyramid)
        losses = self.model.compute_loss([split_ignored(target) for target in targets], outputs, anchors, counts)
        return {LOSSES[key]: value for key, value in losses.items()}


@DETECTORS.register("retinanet_resnet50_fpn_v2")
def build_retinanet_resnet50_fpn_v2(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    freeze_norm: bool | None = None,
    trainable_layers: int | None = None,
    anchor_sides: Sequence[int] = ANCHOR_SIDES,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    top_k: int = 1000,
    detections_per_image: int = 300,
    class_names: Sequence[str] = (),
) -> DenseDetector:
    """Build RetinaNet with GroupNorm in its heads and a GIoU loss.

    Args:
        num_classes: number of classes, background included.
        backbone_weights: torchvision's name ("COCO_V1" for the whole detector, "IMAGENET1K_V2" for the backbone), or the
            path of a file of retinanet_resnet50_fpn_v2 or resnet50.
        image_size: side of square images or (H, W), in pixels.
        freeze_norm: freeze BatchNorm; None freezes it if backbone_weights are given.
        trainable_layers: number of ResNet's five stages that are trained; None means three with weights, else all.
        anchor_sides: smallest of three anchor sides of each of the five levels, in pixels; torchvision's are 32 to 512
            for images of 800 pixels.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of candidates of each level before the NMS.
        detections_per_image: number of detections of an image.
        class_names: names of the classes, background first; COCO's predictor rows go to the classes of the same name.
    """
    top = LastLevelP6P7(2048, CHANNELS)  # P6 from ResNet's last stage
    backbone = resnet50_fpn(backbone_weights is not None, freeze_norm, trainable_layers, STRIDES, 1, top)
    head, anchors = _build_head(anchor_sides, num_classes)
    model = LevelRetinaNet(
        backbone,
        num_classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        topk_candidates=top_k,
        detections_per_img=top_k * len(anchor_sides),  # all; `_select` limits them after dropping boxes without area
    )
    classes = ClassHead(PREDICTORS, num_classes, class_names)
    return _finish(model, backbone_weights, "retinanet_resnet50_fpn_v2", classes, image_size, detections_per_image)


@DETECTORS.register("fcos_resnet50_fpn")
def build_fcos_resnet50_fpn(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    freeze_norm: bool | None = None,
    trainable_layers: int | None = None,
    score_threshold: float = 0.2,
    nms_threshold: float = 0.6,
    top_k: int = 1000,
    detections_per_image: int = 100,
    class_names: Sequence[str] = (),
) -> DenseDetector:
    """Build FCOS, which has no anchors: a point predicts its distances to the four sides of the box.

    The arguments are those of `build_retinanet_resnet50_fpn_v2`; the weights are those of fcos_resnet50_fpn or resnet50.
    """
    top = LastLevelP6P7(CHANNELS, CHANNELS)  # P6 from P5
    backbone = resnet50_fpn(backbone_weights is not None, freeze_norm, trainable_layers, STRIDES, 1, top)
    points = AnchorGenerator(tuple((stride,) for stride in STRIDES[1:]), ((1.0,),) * len(STRIDES[1:]))
    model = FCOS(
        backbone,
        num_classes,
        anchor_generator=points,
        head=IgnoringFCOSHead(CHANNELS, 1, num_classes),
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        topk_candidates=top_k,
        detections_per_img=top_k * len(STRIDES[1:]),  # all; `_select` limits them after dropping boxes without area
    )
    classes = ClassHead(PREDICTORS, num_classes, class_names)
    return _finish(model, backbone_weights, "fcos_resnet50_fpn", classes, image_size, detections_per_image)


def _build_head(anchor_sides: Sequence[int], num_classes: int) -> tuple["IgnoringRetinaNetHead", AnchorGenerator]:
    check_sides(anchor_sides, len(ANCHOR_SIDES))
    sides = tuple(tuple(int(side * 2 ** (octave / 3)) for octave in range(3)) for side in anchor_sides)
    anchors = AnchorGenerator(sides, (RATIOS,) * len(sides))
    norm = partial(nn.GroupNorm, NORM_GROUPS)
    head = IgnoringRetinaNetHead(CHANNELS, anchors.num_anchors_per_location()[0], num_classes, norm)
    head.regression_head._loss_type = "giou"
    return head, anchors


def _finish(
    model: "LevelRetinaNet | FCOS",
    weights: str | None,
    name: str,
    head: ClassHead,
    image_size: int | Sequence[int],
    detections_per_image: int,
) -> DenseDetector:
    """Wrap the model as a detector and load the weights, if any."""
    detector = DenseDetector(model, head.num_classes, parse_size(image_size), detections_per_image)
    if weights is not None:
        detector.weights_note = load_pretrained(model, model.backbone.body, weights, ("resnet50", name), head)
    return detector


class LevelRetinaNet(RetinaNet):
    """RetinaNet whose `compute_loss` has the arguments of that of FCOS."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        num_anchors_per_level: list[int],
    ) -> dict[str, Tensor]:
        """Return torchvision's losses by torchvision's names."""
        return super().compute_loss(targets, head_outputs, anchors)


class IgnoringRetinaNetHead(RetinaNetHead):
    """RetinaNet head that does not train on negatives mostly inside an ignored object."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Ignore negatives inside ignored objects, then compute torchvision's losses."""
        matched = [
            index.masked_fill((index < 0) & inside_ignored(boxes, target["ignored"]), Matcher.BETWEEN_THRESHOLDS)
            for index, boxes, target in zip(matched_idxs, anchors, targets, strict=True)
        ]
        return super().compute_loss(targets, head_outputs, anchors, matched)


class IgnoringFCOSHead(FCOSHead):
    """FCOS head that does not train on negatives mostly inside an ignored object."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Remove the loss of negatives inside ignored objects, then compute torchvision's losses."""
        ignored = torch.stack(
            [
                (index < 0) & inside_ignored(boxes, target["ignored"])
                for index, boxes, target in zip(matched_idxs, anchors, targets, strict=True)
            ]
        )
        logits = head_outputs["cls_logits"].masked_fill(ignored[..., None], ZERO_LOSS_LOGIT)
        return super().compute_loss(targets, {**head_outputs, "cls_logits": logits}, anchors, matched_idxs)
