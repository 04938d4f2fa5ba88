"""torchvision's ssdlite320_mobilenet_v3_large as a detector, with torchvision's extractor and heads.

The pyramid begins with MobileNetV3's levels at strides 4 and 8 for the decoder. Boxes are predicted from the expansion layer
at stride 16 on.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.class_rows import ClassHead
from dasnet_lightning.detectors.layers import FrozenBatchNorm, LoneBatchNorm, PairedHead, parse_size
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, clip_shapes, ssd_shapes
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.detectors.weights import fill, fill_detector, is_detector, load_state, select

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
LEVEL_BLOCKS = (3, 6)  # last blocks at strides 4 and 8
C4 = 13  # the block whose expansion is the first level that predicts boxes
EXTRAS = (512, 256, 256, 128)
SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
EPS = 0.001
PREDICTORS = {f"heads.{level}.classification.1": 1 for level in range(6)}


class MobileNetV3Lite(nn.Module):
    """torchvision's extractor, which also returns two finer levels; strides 4 to 512.

    Args:
        freeze_norm: freeze BatchNorm.
        reduced_tail: halve the channels of the last blocks.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)

    def __init__(self, freeze_norm: bool, reduced_tail: bool) -> None:
        super().__init__()
        norm = partial(LoneBatchNorm, eps=EPS, momentum=0.03)
        frozen_norm = partial(FrozenBatchNorm, eps=EPS)
        body = mobilenet_v3_large(norm_layer=frozen_norm if freeze_norm else norm, reduced_tail=reduced_tail).features
        self.out_channels: tuple[int, ...] = (24, 40, 672, body[-1].out_channels, *EXTRAS)
        self.extractor = SSDLiteFeatureExtractorMobileNet(body, C4, norm)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[tuple[Float[Tensor, "b _ _ _"], ...], None]:
        """Return the levels of normalized images, finest first, and None for the switches."""
        x, levels = images, []
        fine, coarse = self.extractor.features
        for number, block in enumerate(fine):
            x = block(x)
            if number in (*LEVEL_BLOCKS, len(fine) - 1):
                levels.append(x)
        for block in (coarse, *self.extractor.extra):
            x = block(x)
            levels.append(x)
        return tuple(levels), None


def body_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of torchvision's mobilenet_v3_large to those of the extractor, which splits block 13 in two."""
    renamed = {}
    for key, value in select(state, "features.").items():
        number, _, rest = key.partition(".")
        layer = re.match(r"block\.([1-9])\.(.+)", rest)
        if number.isdigit() and int(number) > C4:
            key = f"1.{int(number) - C4}.{rest}"
        elif number == str(C4) and layer:
            key = f"1.0.{layer[1]}.{layer[2]}"
        else:
            key = f"0.{key.replace(f'{C4}.block.0.', f'{C4}.')}"
        renamed[key] = value
    return renamed


def detector_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of torchvision's ssdlite320_mobilenet_v3_large to ours."""
    renamed = {f"backbone.extractor.{key}": value for key, value in select(state, "backbone.").items()}
    for head in ("classification", "regression"):
        for key, value in select(state, f"head.{head}_head.module_list.").items():
            level, _, rest = key.partition(".")
            renamed[f"heads.{level}.{head}.{rest}"] = value
    return renamed


@DETECTORS.register("ssdlite320_mobilenet_v3_large")
def build_ssdlite320_mobilenet_v3_large(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    freeze_norm: bool | None = None,
    reduced_tail: bool | None = None,
    score_threshold: float = 0.001,
    nms_threshold: float = 0.55,
    top_k: int = 300,
    detections_per_image: int = 300,
    class_names: Sequence[str] = (),
) -> SSD:
    """Build SSDLite on MobileNetV3-Large.

    Args:
        num_classes: number of classes, background included.
        backbone_weights: torchvision's name ("COCO_V1" for the whole detector, "IMAGENET1K_V2" for the backbone), or the
            path of a file of ssdlite320_mobilenet_v3_large or mobilenet_v3_large.
        image_size: side of square images or (H, W), in pixels.
        freeze_norm: freeze the backbone's BatchNorm; None freezes it if backbone_weights are given.
        reduced_tail: halve the channels of the last blocks, as the COCO weights do; None halves them unless the weights
            are those of mobilenet_v3_large.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of candidates of each class before the NMS.
        detections_per_image: number of detections of an image.
        class_names: names of the classes, background first; COCO's predictor rows go to the classes of the same name.
    """
    names = ("mobilenet_v3_large", "ssdlite320_mobilenet_v3_large")
    state = None if backbone_weights is None else load_state(backbone_weights, *names)
    if reduced_tail is None:
        reduced_tail = state is None or is_detector(state)
    backbone = MobileNetV3Lite(state is not None if freeze_norm is None else freeze_norm, reduced_tail)
    anchors = AnchorLayout(clip_shapes(ssd_shapes(SCALES, [(2.0, 3.0)] * 6)))
    head_levels = tuple(range(len(LEVEL_BLOCKS), len(backbone.out_channels)))
    channels, per_cell = list(backbone.out_channels[len(LEVEL_BLOCKS) :]), list(anchors.per_cell)
    head = SSDLiteHead(channels, per_cell, num_classes, partial(LoneBatchNorm, eps=EPS, momentum=0.03))
    pairs = zip(head.classification_head.module_list, head.regression_head.module_list, per_cell, strict=True)
    detector = SSD(
        backbone, [PairedHead(*pair) for pair in pairs], anchors, head_levels, num_classes, parse_size(image_size),
        MEAN, STD, score_threshold, nms_threshold, top_k, detections_per_image,
    )  # fmt: skip
    detector.portable_options = {"reduced_tail": reduced_tail}
    if state is not None and backbone_weights is not None:
        head = ClassHead(PREDICTORS, num_classes, class_names)
        detector.weights_note = load_ssdlite(detector, backbone, state, backbone_weights, head)
    return detector


def load_ssdlite(
    detector: SSD, backbone: MobileNetV3Lite, state: Mapping[str, Tensor], source: str, head: ClassHead
) -> str:
    """Load weights into the detector or only into its backbone; return a note on the predictors. Raises CheckpointError."""
    if is_detector(state):
        name = "torchvision's ssdlite320_mobilenet_v3_large"
        return fill_detector(detector, detector_state(state), source, name, head)
    expected = "the state dict of torchvision's mobilenet_v3_large (with reduced_tail: false)"
    fill(backbone.extractor.features, body_state(state), source, expected)
    return ""
