"""RetinaNet and FCOS: torchvision's models work on the given pyramid, only their `forward` is not used.

Their heads, anchors, matching, losses and selection of boxes are torchvision's own. The pyramid begins with ResNet's raw
level at stride 4, which is for the decoder. Box arithmetic stays in float32 under autocast.

RetinaNet and FCOS by name: ResNet50 with a pyramid at strides 8 to 128 and torchvision's heads.
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
from dasnet_lightning.detectors.fpn import CHANNELS, FPN, check_sides, resnet50_fpn
from dasnet_lightning.detectors.layers import IMAGENET_MEAN, IMAGENET_STD, parse_size
from dasnet_lightning.detectors.torchvision_targets import has_area, inside_ignored, split_ignored
from dasnet_lightning.detectors.weights import load_pretrained
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target

LOSSES = {"classification": "classification", "bbox_regression": "box", "bbox_ctrness": "centerness"}
CERTAIN = -1e4  # the logit of an answer that costs nothing at a background anchor


class IgnoringRetinaNetHead(RetinaNetHead):
    """A head for which anchors mostly inside an ignored object are not negatives."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        matched = [
            index.masked_fill((index < 0) & inside_ignored(boxes, target["ignored"]), Matcher.BETWEEN_THRESHOLDS)
            for index, boxes, target in zip(matched_idxs, anchors, targets, strict=True)
        ]
        return super().compute_loss(targets, head_outputs, anchors, matched)


class IgnoringFCOSHead(FCOSHead):
    """A head for which points mostly inside an ignored object are not negatives; torchvision's knows no third kind."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        ignored = torch.stack(
            [
                (index < 0) & inside_ignored(boxes, target["ignored"])
                for index, boxes, target in zip(matched_idxs, anchors, targets, strict=True)
            ]
        )
        logits = head_outputs["cls_logits"].masked_fill(ignored[..., None], CERTAIN)
        return super().compute_loss(targets, {**head_outputs, "cls_logits": logits}, anchors, matched_idxs)


class LevelRetinaNet(RetinaNet):
    """RetinaNet whose loss takes the same arguments as that of FCOS."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        num_anchors_per_level: list[int],
    ) -> dict[str, Tensor]:
        return super().compute_loss(targets, head_outputs, anchors)


class DenseDetector(Detector):
    """One-stage detector over a feature pyramid: the answers of torchvision's `model`, from a pyramid made before."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: LevelRetinaNet | FCOS,
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
        return self.model.backbone

    def features(self, images: Images) -> Pyramid:
        """Normalise the images (RGB, 0..1) and run the backbone once."""
        levels = self.backbone((images - self.mean) / self.std)
        return Pyramid(levels=levels, strides=self.strides, size=(images.shape[-2], images.shape[-1]))

    def predict(self, pyramid: Pyramid) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """(torchvision's head outputs in float32, the anchors of each image, how many anchors each level has)."""
        levels = list(pyramid.levels[self.backbone.raw_levels :])
        outputs = {key: value.float() for key, value in self.model.head(levels).items()}
        number = len(levels[0])
        images = ImageList(torch.empty(number, 3, *pyramid.size, device="meta"), [pyramid.size] * number)
        cells = [torch.empty(level.shape[-2:], device=level.device) for level in levels]
        per_cell = self.model.anchor_generator.num_anchors_per_location()
        counts = [cell.numel() * anchors for cell, anchors in zip(cells, per_cell, strict=True)]
        return outputs, self.model.anchor_generator(images, cells), counts

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """Boxes in input pixels, clipped to the image, after NMS, best first; one entry for each image."""
        outputs, anchors, counts = self.predict(pyramid)
        outputs["cls_logits"][..., 0] = -torch.inf  # torchvision gives the background a class that is never right
        answers = self.model.postprocess_detections(
            {key: list(value.split(counts, dim=1)) for key, value in outputs.items()},
            [list(boxes.split(counts)) for boxes in anchors],
            [pyramid.size] * len(anchors),
        )
        return tuple(self._limit(answer) for answer in answers)

    def _limit(self, answer: dict[str, Tensor]) -> Detections:
        """The best boxes of one image, without what is left of those outside it."""
        kept = has_area(answer["boxes"]).nonzero()[: self.detections_per_image, 0]
        return Detections(boxes=answer["boxes"][kept], labels=answer["labels"][kept], scores=answer["scores"][kept])

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Focal loss of the classes, GIoU loss of the boxes; of FCOS the centerness too."""
        outputs, anchors, counts = self.predict(pyramid)
        truth = [split_ignored(target) for target in targets]
        losses = self.model.compute_loss(truth, outputs, anchors, counts)
        return {LOSSES[key]: value for key, value in losses.items()}


STRIDES = (4, 8, 16, 32, 64, 128)
ANCHOR_SIDES = (16, 32, 64, 128, 256)  # by level; half of torchvision's, whose images are 800 pixels wide
RATIOS = (0.5, 1.0, 2.0)
NORM_GROUPS = 32
PREDICTOR = r"head\.classification_head\.cls_logits\."


def _finish(
    model: LevelRetinaNet | FCOS,
    weights: str | None,
    name: str,
    num_classes: int,
    image_size: int | Sequence[int],
    detections_per_image: int,
) -> DenseDetector:
    if weights is not None:
        load_pretrained(model, model.backbone.body, weights, ("resnet50", name), PREDICTOR)
    return DenseDetector(model, num_classes, parse_size(image_size), detections_per_image)


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
) -> DenseDetector:
    """RetinaNet with GroupNorm in its heads and a GIoU loss.

    backbone_weights: torchvision's name ("COCO_V1" for the whole detector, "IMAGENET1K_V2" for the backbone) or a file
    of retinanet_resnet50_fpn_v2 or resnet50. freeze_norm: hold BatchNorm; None means where backbone_weights are given.
    trainable_layers: how many of ResNet's five stages learn; None means three with weights and all without.
    anchor_sides: the smallest of three, in pixels, for each of the five levels; torchvision's, for images of 800 pixels,
    are 32 to 512. top_k: candidates of each level that enter the NMS.
    """
    check_sides(anchor_sides, len(ANCHOR_SIDES))
    top = LastLevelP6P7(2048, CHANNELS)  # P6 from ResNet's last stage
    backbone = resnet50_fpn(
        backbone_weights is not None, freeze_norm, trainable_layers, STRIDES, raw_levels=1, extra=top
    )
    sides = tuple(tuple(int(side * 2 ** (octave / 3)) for octave in range(3)) for side in anchor_sides)
    anchors = AnchorGenerator(sides, (RATIOS,) * len(sides))
    head = IgnoringRetinaNetHead(
        CHANNELS, anchors.num_anchors_per_location()[0], num_classes, partial(nn.GroupNorm, NORM_GROUPS)
    )
    head.regression_head._loss_type = "giou"
    model = LevelRetinaNet(
        backbone,
        num_classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        topk_candidates=top_k,
        detections_per_img=top_k * len(sides),  # all: the limit comes after boxes without area are gone
    )
    return _finish(model, backbone_weights, "retinanet_resnet50_fpn_v2", num_classes, image_size, detections_per_image)


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
) -> DenseDetector:
    """FCOS: no anchors, a point predicts the distances to the four sides of the box around it.

    The options are those of retinanet_resnet50_fpn_v2, the weights those of fcos_resnet50_fpn or resnet50.
    """
    top = LastLevelP6P7(CHANNELS, CHANNELS)  # P6 from P5
    backbone = resnet50_fpn(
        backbone_weights is not None, freeze_norm, trainable_layers, STRIDES, raw_levels=1, extra=top
    )
    points = AnchorGenerator(tuple((stride,) for stride in STRIDES[1:]), ((1.0,),) * len(STRIDES[1:]))
    model = FCOS(
        backbone,
        num_classes,
        anchor_generator=points,
        head=IgnoringFCOSHead(CHANNELS, 1, num_classes),
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        topk_candidates=top_k,
        detections_per_img=top_k * len(STRIDES[1:]),  # all: the limit comes after boxes without area are gone
    )
    return _finish(model, backbone_weights, "fcos_resnet50_fpn", num_classes, image_size, detections_per_image)
