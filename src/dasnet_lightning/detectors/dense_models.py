"""RetinaNet and FCOS by name: ResNet50 with a pyramid at strides 8 to 128 and torchvision's heads."""

from collections.abc import Sequence
from functools import partial

from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.dense import DenseDetector, IgnoringFCOSHead, IgnoringRetinaNetHead, LevelRetinaNet
from dasnet_lightning.detectors.fpn import CHANNELS, check_sides, resnet50_fpn
from dasnet_lightning.detectors.layers import parse_size
from dasnet_lightning.detectors.weights import load_pretrained

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
