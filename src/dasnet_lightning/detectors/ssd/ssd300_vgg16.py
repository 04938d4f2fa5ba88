"""torchvision's ssd300_vgg16 as a detector, with the same layers and anchors, so its COCO weights load.

It differs from the paper's detector (ssd320_vgg16) in its size, its scales and its clipped anchor shapes. Unlike in
torchvision's model, the pyramid holds the raw conv4_3, only the first box head has an L2 norm, and the poolings return
their switches. All poolings round up, in torchvision only the third; at 300 pixels this is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn
from torchvision.models.detection.ssd import SSDClassificationHead, SSDRegressionHead

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.class_rows import ClassHead, count_classes, take_rows
from dasnet_lightning.detectors.layers import L2Norm, PairedHead, parse_size
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, clip_shapes, ssd_shapes
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.detectors.ssd.ssd320_vgg16 import (
    POOLS,
    RATIOS,
    VGG16,
    check_side,
    load_vgg16,
    scale_first_layer,
    stage_names,
)
from dasnet_lightning.detectors.weights import fill_detector, is_detector, load_state
from dasnet_lightning.errors import ConfigError

MEAN = (0.48235, 0.45882, 0.40784)
STD = (1 / 255, 1 / 255, 1 / 255)
STEPS = (8, 16, 32, 64, 100, 300)
SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
POOL4 = 23  # index in torchvision's `features`; the layers from here on are `extra.0`, counted from 0
PREDICTORS = {f"heads.{level}.{'1.' if level == 0 else ''}classification": 1 for level in range(6)}
FULLY_CONNECTED = {"extra.0.7.1": "fc6", "extra.0.7.3": "fc7"}


def ssd300_state(state: Mapping[str, Tensor], backbone: VGG16) -> dict[str, Tensor]:
    """Rename the keys of torchvision's ssd300_vgg16 to ours; an unexpected key keeps its name."""
    names = {"scale_weight": "heads.0.0.scale"}
    for number, stage in stage_names(backbone).items():
        layer = f"features.{number}" if int(number) < POOL4 else f"extra.0.{int(number) - POOL4}"
        names[layer] = f"backbone.stages.{stage}"
    names |= {theirs: f"backbone.{ours}" for theirs, ours in FULLY_CONNECTED.items()}
    names |= {f"extra.{i + 1}.{layer}": f"backbone.extras.{i}.{layer}" for i in range(4) for layer in (0, 2)}
    names = {f"backbone.{theirs}": ours for theirs, ours in names.items()}
    for head in ("classification", "regression"):
        for level in range(6):
            ours = f"heads.{level}.1" if level == 0 else f"heads.{level}"
            names[f"head.{head}_head.module_list.{level}"] = f"{ours}.{head}"
    renamed = {}
    for key, value in state.items():
        layer, _, parameter = key.rpartition(".")
        if key in names:
            renamed[names[key]] = value.view(-1, 1, 1)  # scale of the L2 norm
        else:
            renamed[f"{names.get(layer, layer)}.{parameter}"] = value
    return renamed


@DETECTORS.register("ssd300_vgg16")
def build_ssd300_vgg16(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 300,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.45,
    top_k: int = 400,
    detections_per_image: int = 200,
    predictor_classes: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
) -> SSD:
    """Build torchvision's SSD300-VGG16.

    Args:
        num_classes: number of classes, background included.
        backbone_weights: torchvision's name ("COCO_V1" for the whole detector, "IMAGENET1K_FEATURES" for the backbone),
            or the path of a file of ssd300_vgg16 or vgg16.
        image_size: side of square images or (H, W), in pixels, at least 257.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of candidates of each class before the NMS.
        detections_per_image: number of detections of an image.
        predictor_classes: for each class, background first, the class of the loaded detector whose predictors it takes,
            so that it detects without training. None chooses by `class_names`; without names the predictors of another
            number of classes stay untrained.
        class_names: names of the classes, background first; COCO's predictor rows go to the classes of the same name.
    """
    if predictor_classes is not None and len(predictor_classes) != num_classes:
        raise ConfigError(f"predictor_classes names {len(predictor_classes)} classes, expected {num_classes}")
    size = parse_size(image_size)
    check_side(size, "ssd300_vgg16")
    backbone = VGG16(STEPS)
    anchors = AnchorLayout(clip_shapes(ssd_shapes(SCALES, RATIOS)), steps=STEPS, size=(300, 300))
    heads = _build_heads(list(backbone.out_channels), list(anchors.per_cell), num_classes)
    detector = SSD(
        backbone, heads, anchors, tuple(range(6)), num_classes, size, MEAN, STD,
        score_threshold, nms_threshold, top_k, detections_per_image, POOLS,
    )  # fmt: skip
    if backbone_weights is None:
        scale_first_layer(backbone)
    else:
        head = ClassHead(PREDICTORS, num_classes, class_names)
        detector.weights_note = load_ssd300(detector, backbone, backbone_weights, head, predictor_classes)
    return detector


def _build_heads(channels: list[int], per_cell: list[int], num_classes: int) -> list[nn.Module]:
    pairs = zip(
        SSDClassificationHead(channels, per_cell, num_classes).module_list,
        SSDRegressionHead(channels, per_cell).module_list,
        per_cell,
        strict=True,
    )
    heads: list[nn.Module] = [PairedHead(*pair) for pair in pairs]
    heads[0] = nn.Sequential(L2Norm(512, scale=20.0), heads[0])
    return heads


def load_ssd300(
    detector: SSD, backbone: VGG16, weights: str, head: ClassHead, classes: Sequence[int] | None = None
) -> str:
    """Load weights into the whole detector or only into its backbone.

    Args:
        detector: the detector.
        backbone: its backbone.
        weights: path of a file or torchvision's name; they may be those of the detector or of the backbone.
        head: the class predictors of the detector.
        classes: classes to select from the predictors of a whole detector; None lets `head` choose.

    Returns:
        A note on the class predictors.

    Raises:
        CheckpointError: the weights do not fit.
        ConfigError: the predictors do not have one of the classes.
    """
    state = load_state(weights, "vgg16", "ssd300_vgg16")
    if not is_detector(state):
        load_vgg16(backbone, state, weights)
        return ""
    state = ssd300_state(state, backbone)
    if classes is not None:
        own = detector.state_dict()
        last = count_classes(state, own, PREDICTORS, head.num_classes) - 1
        if not all(0 <= label <= last for label in classes):
            raise ConfigError(f"predictor_classes is {list(classes)}, but the classes of {weights} are 0 to {last}")
        state, head = take_rows(state, own, PREDICTORS, classes), replace(head, class_names=())
    return fill_detector(detector, state, weights, "torchvision's ssd300_vgg16", head)
