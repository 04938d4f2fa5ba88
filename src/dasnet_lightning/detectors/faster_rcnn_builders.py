"""The builders of all Faster R-CNNs; each chooses a pyramid, anchors and heads for `build_faster_rcnn`.

The weights of torchvision's fasterrcnn_resnet50_fpn were trained with a BatchNorm without epsilon. Ours has 1e-5, which can
change the outputs a little.
"""

from collections.abc import Sequence

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.class_rows import ClassHead
from dasnet_lightning.detectors.faster_rcnn import POOLED, FasterRCNN, SelectionOptions, build_faster_rcnn
from dasnet_lightning.detectors.fpn import CHANNELS, check_sides, mobilenet_v2_fpn, mobilenet_v3_fpn, resnet50_fpn
from dasnet_lightning.detectors.weights import fill, load_pretrained, load_state, without_classifier

ANCHOR_SIDES = (16, 32, 64, 128, 256)  # pixels, by level; half of torchvision's, whose images are 800 pixels wide
MOBILE_SIDES = (32, 64, 128, 256, 512)  # pixels, all at every level
RATIOS = (0.5, 1.0, 2.0)
RESNET_STRIDES = (4, 8, 16, 32, 64)
WIDTH = 1024  # features of a pooled proposal
LIGHT_WIDTH = 512
PREDICTORS = {"roi_heads.box_predictor.cls_score": 1, "roi_heads.box_predictor.bbox_pred": 4}


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
    class_names: Sequence[str] = (),
) -> FasterRCNN:
    """Build Faster R-CNN with ResNet50 and a feature pyramid.

    Args:
        num_classes: number of classes, background included.
        backbone_weights: torchvision's name ("COCO_V1" for the whole detector, "IMAGENET1K_V2" for the backbone), or the
            path of a file of fasterrcnn_resnet50_fpn or resnet50.
        image_size: side of square images or (H, W), in pixels.
        freeze_norm: freeze BatchNorm; None freezes it if backbone_weights are given.
        trainable_layers: number of ResNet's five stages that are trained; None means three with weights, else all.
        anchor_sides: anchor side of each of the five levels, in pixels; torchvision's are 32 to 512 for images of 800
            pixels.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of proposals that the box head classifies in `detect`.
        box_samples: number of proposals of each image that the box head is trained on.
        detections_per_image: number of detections of an image.
        class_names: names of the classes, background first; COCO's predictor rows go to the classes of the same name.
    """
    backbone = resnet50_fpn(backbone_weights is not None, freeze_norm, trainable_layers, RESNET_STRIDES)
    options = SelectionOptions(
        (1000, 1000), (1000, top_k), box_samples, score_threshold, nms_threshold, detections_per_image
    )
    head = TwoMLPHead(CHANNELS * POOLED**2, WIDTH)
    anchors = _one_side_per_level(anchor_sides)
    detector = build_faster_rcnn(backbone, anchors, head, WIDTH, num_classes, image_size, options)
    return _load(detector, backbone_weights, "resnet50", "fasterrcnn_resnet50_fpn", class_names)


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
    class_names: Sequence[str] = (),
) -> FasterRCNN:
    """Build Faster R-CNN with BatchNorm in the pyramid, two proposal convolutions and four convolutions in the box head.

    The arguments are those of `build_faster_rcnn_resnet50_fpn`; the weights are those of fasterrcnn_resnet50_fpn_v2 or
    resnet50. `freeze_norm` freezes the BatchNorm of ResNet only.
    """
    backbone = resnet50_fpn(
        backbone_weights is not None,
        freeze_norm,
        trainable_layers,
        RESNET_STRIDES,
        norm_layer=nn.BatchNorm2d,
    )
    options = SelectionOptions(
        (1000, 1000), (1000, top_k), box_samples, score_threshold, nms_threshold, detections_per_image
    )
    head = FastRCNNConvFCHead((CHANNELS, POOLED, POOLED), [CHANNELS] * 4, [WIDTH], norm_layer=nn.BatchNorm2d)
    anchors = _one_side_per_level(anchor_sides)
    detector = build_faster_rcnn(backbone, anchors, head, WIDTH, num_classes, image_size, options, rpn_depth=2)
    return _load(detector, backbone_weights, "resnet50", "fasterrcnn_resnet50_fpn_v2", class_names)


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
    class_names: Sequence[str] = (),
) -> FasterRCNN:
    """Build torchvision's fast Faster R-CNN; it predicts boxes at strides 32 and 64 only, so it detects large objects.

    Args:
        num_classes: number of classes, background included.
        backbone_weights: torchvision's name ("COCO_V1", "IMAGENET1K_V2"), or the path of a file of
            fasterrcnn_mobilenet_v3_large_320_fpn or mobilenet_v3_large.
        image_size: side of square images or (H, W), in pixels.
        freeze_norm: freeze BatchNorm; None freezes it if backbone_weights are given.
        frozen_blocks: number of MobileNetV3's 17 blocks that are not trained, from the input on.
        anchor_sides: anchor sides in pixels, all at every level.
        proposal_threshold: lowest objectness of a proposal.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of proposals that the box head classifies in `detect`.
        box_samples: number of proposals of each image that the box head is trained on.
        detections_per_image: number of detections of an image.
        class_names: names of the classes, background first; COCO's predictor rows go to the classes of the same name.
    """
    backbone = mobilenet_v3_fpn(backbone_weights is not None if freeze_norm is None else freeze_norm, frozen_blocks)
    limits = ((2000, 150), (2000, top_k), box_samples)
    options = SelectionOptions(*limits, score_threshold, nms_threshold, detections_per_image, proposal_threshold)
    head = TwoMLPHead(CHANNELS * POOLED**2, WIDTH)
    anchors = AnchorGenerator((tuple(anchor_sides),) * 3, (RATIOS,) * 3)
    detector = build_faster_rcnn(backbone, anchors, head, WIDTH, num_classes, image_size, options)
    return _load(detector, backbone_weights, "mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn", class_names)


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
    """Build a light Faster R-CNN for small data sets on a CPU: MobileNetV2, a narrow pyramid at strides 4 to 64.

    Args:
        num_classes: number of classes, background included.
        backbone_weights: torchvision's name ("IMAGENET1K_V1"), or the path of a file of mobilenet_v2.
        image_size: side of square images or (H, W), in pixels.
        channels: channels of the pyramid, 128 or 256.
        freeze_norm: freeze BatchNorm; None freezes it if backbone_weights are given.
        frozen_blocks: number of MobileNetV2's 19 blocks that are not trained, from the input on.
        anchor_sides: anchor side of each of the five levels, in pixels.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of proposals that the box head classifies in `detect`.
        box_samples: number of proposals of each image that the box head is trained on.
        detections_per_image: number of detections of an image.
    """
    freeze = backbone_weights is not None if freeze_norm is None else freeze_norm
    backbone = mobilenet_v2_fpn(freeze, frozen_blocks, channels)
    options = SelectionOptions(
        (1000, 500), (1000, top_k), box_samples, score_threshold, nms_threshold, detections_per_image
    )
    head = TwoMLPHead(channels * POOLED**2, LIGHT_WIDTH)
    anchors = _one_side_per_level(anchor_sides)
    detector = build_faster_rcnn(backbone, anchors, head, LIGHT_WIDTH, num_classes, image_size, options)
    if backbone_weights is not None:
        state = without_classifier(load_state(backbone_weights, "mobilenet_v2"))
        fill(backbone.body, state, backbone_weights, "the state dict of torchvision's mobilenet_v2")
    return detector


def _one_side_per_level(sides: Sequence[int]) -> AnchorGenerator:
    check_sides(sides, len(ANCHOR_SIDES))
    return AnchorGenerator(tuple((side,) for side in sides), (RATIOS,) * len(sides))


def _load(
    detector: FasterRCNN, weights: str | None, backbone: str, name: str, class_names: Sequence[str]
) -> FasterRCNN:
    """Load the weights, if any, of torchvision's detector `name` or of its backbone."""
    if weights is not None:
        head = ClassHead(PREDICTORS, detector.num_classes, class_names)
        detector.weights_note = load_pretrained(detector, detector.backbone.body, weights, (backbone, name), head)
    return detector
