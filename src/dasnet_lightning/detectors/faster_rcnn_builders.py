"""The Faster R-CNNs by name: each chooses a pyramid, anchors and heads, and `compose` puts them together.

Weights of torchvision's fasterrcnn_resnet50_fpn were made with a BatchNorm without epsilon; ours keeps 1e-5, which
can change their answers a little.
"""

from collections.abc import Sequence

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.faster_rcnn import POOLED, Choices, FasterRCNN, compose
from dasnet_lightning.detectors.fpn import CHANNELS, check_sides, mobilenet_v2_fpn, mobilenet_v3_fpn, resnet50_fpn
from dasnet_lightning.detectors.weights import fill, load_pretrained, load_state, without_classifier

ANCHOR_SIDES = (16, 32, 64, 128, 256)  # by level; half of torchvision's, whose images are 800 pixels wide
MOBILE_SIDES = (32, 64, 128, 256, 512)  # at every level
RATIOS = (0.5, 1.0, 2.0)
RESNET_STRIDES = (4, 8, 16, 32, 64)
WIDTH = 1024  # of a region's features
LIGHT_WIDTH = 512
PREDICTOR = r"roi_heads\.box_predictor\."


def _one_side_a_level(sides: Sequence[int]) -> AnchorGenerator:
    check_sides(sides, len(ANCHOR_SIDES))
    return AnchorGenerator(tuple((side,) for side in sides), (RATIOS,) * len(sides))


def _load(detector: FasterRCNN, weights: str | None, backbone: str, name: str) -> FasterRCNN:
    if weights is not None:
        load_pretrained(detector, detector.backbone.body, weights, (backbone, name), PREDICTOR)
    return detector


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
    box_samples: int = 256,
    detections_per_image: int = 100,
) -> FasterRCNN:
    """Faster R-CNN with ResNet50 and a feature pyramid.

    backbone_weights: torchvision's name ("COCO_V1" for the whole detector, "IMAGENET1K_V2" for the backbone) or a file
    of fasterrcnn_resnet50_fpn or resnet50. freeze_norm: hold BatchNorm; None means where backbone_weights are given.
    trainable_layers: how many of ResNet's five stages learn; None means three with weights and all without.
    anchor_sides: in pixels, for each of the five levels; torchvision's, for images of 800 pixels, are 32 to 512. top_k:
    proposals that the box head looks at in `detect`. box_samples: of each image, that it learns from.
    """
    backbone = resnet50_fpn(backbone_weights is not None, freeze_norm, trainable_layers, RESNET_STRIDES)
    choices = Choices((1000, 1000), (1000, top_k), box_samples, score_threshold, nms_threshold, detections_per_image)
    head = TwoMLPHead(CHANNELS * POOLED**2, WIDTH)
    anchors = _one_side_a_level(anchor_sides)
    detector = compose(backbone, anchors, head, WIDTH, num_classes, image_size, choices)
    return _load(detector, backbone_weights, "resnet50", "fasterrcnn_resnet50_fpn")


@DETECTORS.register("faster_rcnn_resnet50_fpn_v2")
def build_faster_rcnn_resnet50_fpn_v2(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    freeze_norm: bool | None = None,
    trainable_layers: int | None = None,
    anchor_sides: Sequence[int] = ANCHOR_SIDES,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    top_k: int = 300,
    box_samples: int = 256,
    detections_per_image: int = 100,
) -> FasterRCNN:
    """Faster R-CNN with BatchNorm in the pyramid, two convolutions for proposals and four in the box head.

    The options are those of faster_rcnn_resnet50_fpn, the weights those of fasterrcnn_resnet50_fpn_v2 or resnet50.
    freeze_norm is about ResNet alone.
    """
    backbone = resnet50_fpn(
        backbone_weights is not None,
        freeze_norm,
        trainable_layers,
        RESNET_STRIDES,
        norm_layer=nn.BatchNorm2d,
    )
    choices = Choices((1000, 1000), (1000, top_k), box_samples, score_threshold, nms_threshold, detections_per_image)
    head = FastRCNNConvFCHead((CHANNELS, POOLED, POOLED), [CHANNELS] * 4, [WIDTH], norm_layer=nn.BatchNorm2d)
    anchors = _one_side_a_level(anchor_sides)
    detector = compose(backbone, anchors, head, WIDTH, num_classes, image_size, choices, rpn_depth=2)
    return _load(detector, backbone_weights, "resnet50", "fasterrcnn_resnet50_fpn_v2")


@DETECTORS.register("faster_rcnn_mobilenet_v3_large_320_fpn")
def build_faster_rcnn_mobilenet_v3_large_320_fpn(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    freeze_norm: bool | None = None,
    frozen_blocks: int = 0,
    anchor_sides: Sequence[int] = MOBILE_SIDES,
    proposal_threshold: float = 0.05,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    top_k: int = 150,
    box_samples: int = 512,
    detections_per_image: int = 100,
) -> FasterRCNN:
    """Torchvision's quick Faster R-CNN: boxes at strides 32 and 64 only, so it finds large objects.

    backbone_weights: torchvision's name ("COCO_V1", "IMAGENET1K_V2") or a file of fasterrcnn_mobilenet_v3_large_320_fpn
    or mobilenet_v3_large. freeze_norm: hold BatchNorm; None means where backbone_weights are given. frozen_blocks: how
    many of MobileNetV3's 17 blocks do not learn, from the input on. anchor_sides: in pixels, all at every level.
    proposal_threshold: least objectness of a proposal. top_k: proposals that the box head looks at in `detect`.
    box_samples: of each image, that it learns from.
    """
    backbone = mobilenet_v3_fpn(backbone_weights is not None if freeze_norm is None else freeze_norm, frozen_blocks)
    choices = Choices(
        (2000, 150),
        (2000, top_k),
        box_samples,
        score_threshold,
        nms_threshold,
        detections_per_image,
        proposal_threshold,
    )
    head = TwoMLPHead(CHANNELS * POOLED**2, WIDTH)
    anchors = AnchorGenerator((tuple(anchor_sides),) * 3, (RATIOS,) * 3)
    detector = compose(backbone, anchors, head, WIDTH, num_classes, image_size, choices)
    return _load(detector, backbone_weights, "mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn")


@DETECTORS.register("faster_rcnn_mobilenet_v2_fpn")
def build_faster_rcnn_mobilenet_v2_fpn(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    channels: int = 128,
    freeze_norm: bool | None = None,
    frozen_blocks: int = 0,
    anchor_sides: Sequence[int] = ANCHOR_SIDES,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    top_k: int = 300,
    box_samples: int = 128,
    detections_per_image: int = 100,
) -> FasterRCNN:
    """A light Faster R-CNN for small data on a processor: MobileNetV2, a narrow pyramid at strides 4 to 64, a small head.

    backbone_weights: torchvision's name ("IMAGENET1K_V1") or a file of mobilenet_v2. channels: of the pyramid, 128 or
    256. freeze_norm: hold BatchNorm; None means where backbone_weights are given. frozen_blocks: how many of
    MobileNetV2's 19 blocks do not learn, from the input on. anchor_sides: in pixels, for each of the five levels. top_k:
    proposals that the box head looks at in `detect`. box_samples: of each image, that it learns from.
    """
    frozen = backbone_weights is not None if freeze_norm is None else freeze_norm
    backbone = mobilenet_v2_fpn(frozen, frozen_blocks, channels)
    choices = Choices((1000, 500), (1000, top_k), box_samples, score_threshold, nms_threshold, detections_per_image)
    head = TwoMLPHead(channels * POOLED**2, LIGHT_WIDTH)
    anchors = _one_side_a_level(anchor_sides)
    detector = compose(backbone, anchors, head, LIGHT_WIDTH, num_classes, image_size, choices)
    if backbone_weights is not None:
        state = without_classifier(load_state(backbone_weights, "mobilenet_v2"))
        fill(backbone.body, state, backbone_weights, "the state dict of torchvision's mobilenet_v2")
    return detector
