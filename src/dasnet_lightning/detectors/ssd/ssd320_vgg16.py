"""SSD320 on VGG16, the detector of the paper (paper.md section 6).

It differs from torchvision's ssd300_vgg16: the pyramid holds the raw conv4_3, and only its box head has an L2 norm. The
switches of the five poolings go to the decoder.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.layers import L2Norm, init_convolutions, init_predictors, parse_size
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, ssd_shapes
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.detectors.weights import fill, load_state, select
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.pooling import PoolShape, max_pool_with_switches

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
POOLS = (*[PoolShape(2, 2, 0)] * 4, PoolShape(3, 1, 1))
MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
STD = (1 / 255, 1 / 255, 1 / 255)
STEPS = (8, 16, 32, 64, 100, 320)
# Caffe's rule for min_ratio 20 and max_ratio 90: whole percents, 17 apart; the first level has a scale of its own.
SCALES = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)
RATIOS = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # indices in torchvision's `features`
MIN_SIDE = 257  # pixels; the last two convolutions have no padding, so conv7_2 must be at least 5 cells wide


class VGG16(nn.Module):
    """VGG16 up to conv5_3, fc6 and fc7 as convolutions, and SSD's extra layers.

    The levels are conv4_3, fc7, conv6_2, conv7_2, conv8_2 and conv9_2; the switches are those of pool1 to pool5.

    Args:
        strides: stride of each level, as published.
    """

    out_channels: tuple[int, ...] = (512, 1024, 512, 256, 256, 256)

    def __init__(self, strides: tuple[int, ...] = STEPS) -> None:
        super().__init__()
        self.strides = strides
        inputs = (3, *(widths[-1] for widths in STAGES))
        self.stages = nn.ModuleList(
            _build_stage(channels, widths) for channels, widths in zip(inputs, STAGES, strict=False)
        )
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.extras = nn.ModuleList(
            [
                _build_extra(1024, 256, 512, stride=2, padding=1),
                _build_extra(512, 128, 256, stride=2, padding=1),
                _build_extra(256, 128, 256, stride=1, padding=0),
                _build_extra(256, 128, 256, stride=1, padding=0),
            ]
        )
        init_convolutions(self)

    def forward(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[tuple[Float[Tensor, "b _ _ _"], ...], tuple[UInt8[Tensor, "b _ _ _"], ...]]:
        """Return the levels and the switches of normalized images, both finest first."""
        x, switches, levels = images, [], []
        for number, (stage, shape) in enumerate(zip(self.stages, POOLS, strict=True), start=1):
            x = stage(x)
            if number == 4:
                levels.append(x)
            x, pool_switches = max_pool_with_switches(x, *shape, ceil_mode=True)
            switches.append(pool_switches)
        x = F.relu(self.fc7(F.relu(self.fc6(x))))
        levels.append(x)
        for extra in self.extras:
            x = extra(x)
            levels.append(x)
        return tuple(levels), tuple(switches)


def _build_stage(channels: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip((channels, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _build_extra(channels: int, middle: int, out: int, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, middle, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, out, 3, stride=stride, padding=padding),
        nn.ReLU(inplace=True),
    )


def decimate_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return fc6 and fc7 as convolutions: every fourth unit of VGG16's classifier, every third cell of fc6's 7x7 window."""
    fc6, fc7 = state["classifier.0.weight"], state["classifier.3.weight"]
    return {
        "fc6.weight": fc6.view(4096, 512, 7, 7)[::4, :, ::3, ::3],
        "fc6.bias": state["classifier.0.bias"][::4],
        "fc7.weight": fc7.view(4096, 4096, 1, 1)[::4, ::4],
        "fc7.bias": state["classifier.3.bias"][::4],
    }


def stage_names(backbone: VGG16) -> dict[str, str]:
    """Map the index of each of the 13 convolutions in torchvision's `features` to its name in our stages."""
    names = [name for name, layer in backbone.stages.named_modules() if isinstance(layer, nn.Conv2d)]
    return dict(zip(map(str, CONVOLUTIONS), names, strict=True))


def load_vgg16(backbone: VGG16, state: Mapping[str, Tensor], source: str) -> None:
    """Load torchvision's VGG16: the 13 convolutions, and fc6 and fc7 if the state has a finite classifier.

    torchvision's IMAGENET1K_FEATURES has a classifier of NaN.

    Args:
        backbone: the backbone to fill.
        state: the state dict of torchvision's vgg16.
        source: name of the weights, for the error message.

    Raises:
        CheckpointError: the weights do not fit.
    """
    names = stage_names(backbone)
    features = {}
    for key, value in select(state, "features.").items():
        number, _, parameter = key.partition(".")
        features[f"{names.get(number, number)}.{parameter}"] = value
    fill(backbone.stages, features, source, "the state dict of torchvision's vgg16")
    if "classifier.0.weight" in state and bool(state["classifier.0.weight"].isfinite().all()):
        backbone.load_state_dict(decimate_classifier(state), strict=False)


def scale_first_layer(backbone: VGG16) -> None:
    """Scale the weights of an untrained first layer to Caffe's pixel range of about +-128."""
    with torch.no_grad():
        next(backbone.parameters()).div_(256)


def check_side(size: tuple[int, int], name: str) -> None:
    """Check that images are large enough for the last levels.

    Raises:
        ConfigError: they are not.
    """
    if min(size) < MIN_SIDE:
        raise ConfigError(f"image_size is {size}, {name} needs at least {MIN_SIDE} pixels each way")


@DETECTORS.register("ssd320_vgg16")
def build_ssd320_vgg16(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.45,
    top_k: int = 400,
    detections_per_image: int = 200,
) -> SSD:
    """Build SSD320-VGG16 of the DASNet paper.

    Args:
        num_classes: number of classes, background included.
        backbone_weights: torchvision's name ("IMAGENET1K_FEATURES" has the right pixel range), or the path of a file of
            vgg16.
        image_size: side of square images or (H, W), in pixels, at least 257.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of candidates of each class before the NMS.
        detections_per_image: number of detections of an image.
    """
    size = parse_size(image_size)
    check_side(size, "ssd320_vgg16")
    backbone = VGG16()
    if backbone_weights is None:
        scale_first_layer(backbone)
    else:
        load_vgg16(backbone, load_state(backbone_weights, "vgg16"), backbone_weights)
    anchors = AnchorLayout(ssd_shapes(SCALES, RATIOS), steps=STEPS, size=(320, 320))
    heads: list[nn.Module] = [
        nn.Conv2d(channels, number * (num_classes + 4), 3, padding=1)
        for channels, number in zip(backbone.out_channels, anchors.per_cell, strict=True)
    ]
    for head in heads:
        init_predictors(head)
    heads[0] = nn.Sequential(L2Norm(512, scale=20.0), heads[0])
    return SSD(
        backbone, heads, anchors, tuple(range(6)), num_classes, size, MEAN, STD,
        score_threshold, nms_threshold, top_k, detections_per_image, POOLS,
    )  # fmt: skip
