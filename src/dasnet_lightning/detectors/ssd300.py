"""torchvision's ssd300_vgg16 behind our protocol: same layers and anchors, so its COCO weights load.

Beside the paper's detector (vgg16.py) it differs in its size, its scales and its clipped anchor shapes. Unlike in
torchvision's model the pyramid holds the raw conv4_3, the L2 norm stands in front of the first box head only, and the
poolings give their switches. All poolings round up, of torchvision's the third one only: the same at 300 pixels.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision.models.detection.ssd import SSDClassificationHead, SSDRegressionHead

from dasnet_lightning.detectors.anchors import AnchorLayout, clip_shapes, ssd_shapes
from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.layers import L2Norm, PairedHead, parse_size
from dasnet_lightning.detectors.ssd import SSD
from dasnet_lightning.detectors.vgg16 import POOLS, RATIOS, VGG16, accept_pixels, check_side, load_vgg16, stage_names
from dasnet_lightning.detectors.weights import fill_detector, is_detector, load_state

MEAN = (0.48235, 0.45882, 0.40784)
STD = (1 / 255, 1 / 255, 1 / 255)
STEPS = (8, 16, 32, 64, 100, 300)
SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
POOL4 = 23  # its number in torchvision's `features`: what follows is counted anew, from 0, in `extra.0`
PREDICTOR = r"heads\..*classification\."
FULLY_CONNECTED = {"extra.0.7.1": "fc6", "extra.0.7.3": "fc7"}


def ssd300_state(state: Mapping[str, Tensor], backbone: VGG16) -> dict[str, Tensor]:
    """The state dict of torchvision's ssd300_vgg16 with our keys; a key that it should not have keeps its name."""
    names = {"scale_weight": "heads.0.0.scale"}
    for number, stage in stage_names(backbone).items():
        place = f"features.{number}" if int(number) < POOL4 else f"extra.0.{int(number) - POOL4}"
        names[place] = f"backbone.stages.{stage}"
    names |= {theirs: f"backbone.{ours}" for theirs, ours in FULLY_CONNECTED.items()}
    names |= {f"extra.{i + 1}.{layer}": f"backbone.extras.{i}.{layer}" for i in range(4) for layer in (0, 2)}
    names = {f"backbone.{theirs}": ours for theirs, ours in names.items()}
    for kind in ("classification", "regression"):
        for level in range(6):
            ours = f"heads.{level}.1" if level == 0 else f"heads.{level}"
            names[f"head.{kind}_head.module_list.{level}"] = f"{ours}.{kind}"
    renamed = {}
    for key, value in state.items():
        place, _, kind = key.rpartition(".")
        if key in names:
            renamed[names[key]] = value.view(-1, 1, 1)  # the L2 norm's scale
        else:
            renamed[f"{names.get(place, place)}.{kind}"] = value
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
) -> SSD:
    """torchvision's SSD300-VGG16.

    backbone_weights: torchvision's name ("COCO_V1" for the whole detector, "IMAGENET1K_FEATURES" for the backbone) or a
    file of ssd300_vgg16 or vgg16.
    """
    size = parse_size(image_size)
    check_side(size, "ssd300_vgg16")
    backbone = VGG16(STEPS)
    anchors = AnchorLayout(clip_shapes(ssd_shapes(SCALES, RATIOS)), steps=STEPS, size=(300, 300))
    channels, per_cell = list(backbone.out_channels), list(anchors.per_cell)
    pairs = zip(
        SSDClassificationHead(channels, per_cell, num_classes).module_list,
        SSDRegressionHead(channels, per_cell).module_list,
        per_cell,
        strict=True,
    )
    heads: list[nn.Module] = [PairedHead(*pair) for pair in pairs]
    heads[0] = nn.Sequential(L2Norm(512, scale=20.0), heads[0])
    detector = SSD(
        backbone, heads, anchors, tuple(range(6)), num_classes, size, MEAN, STD,
        score_threshold, nms_threshold, top_k, detections_per_image, POOLS,
    )  # fmt: skip
    if backbone_weights is None:
        accept_pixels(backbone)
    else:
        load_ssd300(detector, backbone, backbone_weights)
    return detector


def load_ssd300(detector: SSD, backbone: VGG16, weights: str) -> None:
    """Load the whole detector or the backbone: what the weights hold decides. Raises CheckpointError."""
    state = load_state(weights, "vgg16", "ssd300_vgg16")
    if is_detector(state):
        fill_detector(detector, ssd300_state(state, backbone), weights, "ssd300_vgg16", PREDICTOR)
    else:
        load_vgg16(backbone, state, weights)
