"""SSD300 on MobileNetV2 in the topology of TensorFlow's ssd_mobilenet_v2_coco, so that its COCO weights load.

It differs from ssd320_mobilenet_v2: boxes are predicted from an expansion layer at stride 16 on, by one 3x3 convolution for
each level. Strided convolutions pad at the right and bottom (TensorFlow's SAME), and each class has a sigmoid of its own.
The pyramid begins with MobileNetV2's levels at strides 4 and 8 for the decoder.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.class_rows import BACKGROUND, ClassHead
from dasnet_lightning.detectors.layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrozenBatchNorm,
    LoneBatchNorm,
    PairedHead,
    init_convolutions,
    init_small,
    parse_size,
)
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, AnchorShape
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.detectors.weights import fill, fill_detector, load_state, select

COCO_MEAN = COCO_STD = (0.5, 0.5, 0.5)  # the COCO weights expect pixels in -1..1
LEVEL_BLOCKS = (3, 6)  # last blocks at strides 4 and 8
EXPANSION = 14  # the block whose expansion, at stride 16, is the first level that predicts boxes
EXTRAS = ((256, 512), (128, 256), (128, 256), (64, 128))  # (narrow, out) of each extra level
SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
RATIOS = (1.0, 2.0, 0.5, 3.0, 0.3333)  # width / height, as rounded in the published configuration
PRIOR = 0.01  # score of an untrained class
PREDICTORS = {f"heads.{level}.classification": 1 for level in range(6)}
OFFSET_ORDER = (1, 0, 3, 2)  # TensorFlow predicts y, x, height, width
PARTS = ("trunk.", "extras.", "class_heads.", "box_heads.")


class SameConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 with TensorFlow's SAME padding: one cell at the left and top only for odd sizes."""

    def forward(self, input: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ _ _"]:
        """Pad and convolve."""
        height, width = input.shape[-2:]
        return super().forward(F.pad(input, (width % 2, 1, height % 2, 1)))


class SameMobileNetV2(nn.Module):
    """torchvision's MobileNetV2 with SAME padding, levels at strides 4 to 32, and four extra levels, each half as large.

    Args:
        freeze_norm: freeze MobileNetV2's BatchNorm.
        freeze_extras_norm: freeze the BatchNorm of the extra levels.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
    out_channels: tuple[int, ...] = (24, 32, 576, 1280, *(out for _, out in EXTRAS))

    def __init__(self, freeze_norm: bool, freeze_extras_norm: bool) -> None:
        super().__init__()
        self.features = mobilenet_v2(norm_layer=FrozenBatchNorm if freeze_norm else LoneBatchNorm).features
        _pad_same(self.features)
        norm = FrozenBatchNorm if freeze_extras_norm else LoneBatchNorm
        inputs = (1280, *(out for _, out in EXTRAS))
        self.extras = nn.ModuleList(
            nn.Sequential(
                _block(nn.Conv2d(before, narrow, 1, bias=False), norm),
                _block(SameConv2d(narrow, narrow, 3, stride=2, groups=narrow, bias=False), norm),
                _block(nn.Conv2d(narrow, out, 1, bias=False), norm),
            )
            for before, (narrow, out) in zip(inputs, EXTRAS, strict=False)
        )
        init_convolutions(self.extras)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[tuple[Float[Tensor, "b _ _ _"], ...], None]:
        """Return the levels of normalized images, finest first, and None for the switches."""
        x, levels = images, []
        for number, block in enumerate(self.features):
            if number == EXPANSION:
                layers: nn.Sequential = block.conv
                levels.append(layers[0](x))
                x = layers[1:](levels[-1])
            else:
                x = block(x)
            if number in LEVEL_BLOCKS:
                levels.append(x)
        levels.append(x)
        for extra in self.extras:
            x = extra(x)
            levels.append(x)
        return tuple(levels), None


def _block(convolution: nn.Conv2d, norm: type[FrozenBatchNorm] | type[LoneBatchNorm]) -> nn.Sequential:
    return nn.Sequential(convolution, norm(convolution.out_channels), nn.ReLU6(inplace=True))


def _pad_same(module: nn.Module) -> None:
    """Replace the strided convolutions by ones with SAME padding and the same weights."""
    for name, layer in module.named_children():
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
            same = SameConv2d(layer.in_channels, layer.out_channels, 3, stride=2, groups=layer.groups, bias=False)
            same.weight = layer.weight
            setattr(module, name, same)
        else:
            _pad_same(layer)


def anchor_shapes() -> tuple[tuple[AnchorShape, ...], ...]:
    """Return the published anchor shapes: three at stride 16, six at each other level."""
    levels = [[(0.1, 1.0), (SCALES[0], 2.0), (SCALES[0], 0.5)]]  # (scale, width / height)
    for scale, next_scale in pairwise(SCALES[1:]):
        levels.append([*((scale, ratio) for ratio in RATIOS), (math.sqrt(scale * next_scale), 1.0)])
    return tuple(
        tuple((scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for scale, ratio in level) for level in levels
    )


@DETECTORS.register("ssd300_mobilenet_v2")
def build_ssd300_mobilenet_v2(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 300,
    freeze_norm: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.6,
    top_k: int = 400,
    detections_per_image: int = 100,
    class_names: Sequence[str] = (),
) -> SSD:
    """Build SSD300 on MobileNetV2 in TensorFlow's topology.

    Args:
        num_classes: number of classes, background included.
        backbone_weights: path of a file with the COCO-trained detector (keys trunk, extras, class_heads, box_heads), or
            torchvision's name ("IMAGENET1K_V1") or path of a file of mobilenet_v2.
        image_size: side of square images or (H, W), in pixels.
        freeze_norm: freeze BatchNorm; None freezes that of the layers whose weights are given.
        mean: mean of the pixels, RGB in 0..1; None means ImageNet's with weights of mobilenet_v2, else 0.5.
        std: standard deviation of the pixels; None means ImageNet's with weights of mobilenet_v2, else 0.5.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of candidates of each class before the NMS.
        detections_per_image: number of detections of an image.
        class_names: names of the classes, background first; COCO's predictor rows go to the classes of the same name.
    """
    state = None if backbone_weights is None else load_state(backbone_weights, "mobilenet_v2")
    whole = state is not None and any(key.startswith(PARTS) for key in state)
    imagenet = state is not None and not whole
    freeze = (state is not None, whole) if freeze_norm is None else (freeze_norm, freeze_norm)
    mean, std = mean or (IMAGENET_MEAN if imagenet else COCO_MEAN), std or (IMAGENET_STD if imagenet else COCO_STD)
    backbone = SameMobileNetV2(*freeze)
    anchors = AnchorLayout(anchor_shapes())
    head_levels = tuple(range(len(LEVEL_BLOCKS), len(backbone.out_channels)))
    heads = [
        build_head(backbone.out_channels[level], count, num_classes)
        for level, count in zip(head_levels, anchors.per_cell, strict=True)
    ]
    detector = SSD(
        backbone, heads, anchors, head_levels, num_classes, parse_size(image_size), _rgb(mean), _rgb(std),
        score_threshold, nms_threshold, top_k, detections_per_image, sigmoid=True,
    )  # fmt: skip
    detector.portable_options = {"mean": list(mean), "std": list(std)}
    if state is not None and backbone_weights is not None:
        head = ClassHead(PREDICTORS, num_classes, class_names)
        detector.weights_note = load_ssd300(detector, backbone, state, backbone_weights, head)
    return detector


def _rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def build_head(channels: int, anchors: int, num_classes: int) -> PairedHead:
    """Build the two convolutions of a level, whose classes start with the score PRIOR."""
    classification = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
    regression = nn.Conv2d(channels, anchors * 4, 3, padding=1)
    for layer in (classification, regression):
        init_small(layer)
    bias = torch.full((anchors, num_classes), -math.log(1 / PRIOR - 1))
    bias[:, BACKGROUND] = 0
    with torch.no_grad():
        classification.bias.copy_(bias.flatten())  # type: ignore[union-attr]
    return PairedHead(classification, regression, anchors)


def coco_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of the COCO-trained detector to ours and put its offsets into our order."""
    renamed = {f"backbone.features.{key}": value for key, value in select(state, "trunk.").items()}
    renamed |= {f"backbone.extras.{key}": value for key, value in select(state, "extras.").items()}
    for key, value in select(state, "class_heads.").items():
        level, _, parameter = key.partition(".")
        renamed[f"heads.{level}.classification.{parameter}"] = value
    for key, value in select(state, "box_heads.").items():
        level, _, parameter = key.partition(".")
        renamed[f"heads.{level}.regression.{parameter}"] = value.unflatten(0, (-1, 4))[:, OFFSET_ORDER].flatten(0, 1)
    return renamed | {key: value for key, value in state.items() if not key.startswith(PARTS)}


def load_ssd300(
    detector: SSD, backbone: SameMobileNetV2, state: Mapping[str, Tensor], source: str, head: ClassHead
) -> str:
    """Load weights into the detector or only into MobileNetV2; return a note on the predictors. Raises CheckpointError."""
    if any(key.startswith(PARTS) for key in state):
        return fill_detector(detector, coco_state(state), source, "TensorFlow's ssd_mobilenet_v2_coco", head)
    expected = "the state dict of torchvision's mobilenet_v2 or of TensorFlow's ssd_mobilenet_v2_coco"
    fill(backbone.features, select(state, "features."), source, expected)
    return ""
