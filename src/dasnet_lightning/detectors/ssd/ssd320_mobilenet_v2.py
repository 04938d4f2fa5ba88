"""SSD320 on torchvision's MobileNetV2, for training on a CPU and for small data sets with ImageNet weights.

Boxes are predicted from stride 16 on (optionally from 8). Finer levels are for the decoder.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrozenBatchNorm,
    extra_levels,
    init_convolutions,
    init_small,
    parse_size,
    reduced_head,
)
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, ssd_shapes
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.detectors.weights import fill, load_state, select

LEVEL_BLOCKS = (3, 6, 13, 18)  # last blocks at strides 4, 8, 16 and 32
EXTRAS = ((256, 512), (128, 256), (128, 256), (64, 128))  # (narrow, out) of each extra level
SCALES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05)  # strides 16, 32 and the extras
SCALE_STRIDE8 = 0.075
HEAD_WIDTH = 128
NORM_GROUPS = 16


class MobileNetV2(nn.Module):
    """MobileNetV2's levels at strides 4 to 32 (24, 32, 96, 1280 channels) and four extra levels, each half as large."""

    strides: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
    out_channels: tuple[int, ...] = (24, 32, 96, 1280, *(out for _, out in EXTRAS))

    def __init__(self, freeze_norm: bool) -> None:
        super().__init__()
        self.features = mobilenet_v2(norm_layer=FrozenBatchNorm if freeze_norm else nn.BatchNorm2d).features
        self.extras = extra_levels(1280, EXTRAS, NORM_GROUPS)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[tuple[Float[Tensor, "b _ _ _"], ...], None]:
        """Return the levels of normalized images, finest first, and None for the switches."""
        x, levels = images, []
        for number, block in enumerate(self.features):
            x = block(x)
            if number in LEVEL_BLOCKS:
                levels.append(x)
        for extra in self.extras:
            x = extra(x)
            levels.append(x)
        return tuple(levels), None


@DETECTORS.register("ssd320_mobilenet_v2")
def build_ssd320_mobilenet_v2(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    head_stride8: bool = False,
    freeze_norm: bool | None = None,
    frozen_blocks: int = 0,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.45,
    top_k: int = 400,
    detections_per_image: int = 200,
) -> SSD:
    """Build SSD on MobileNetV2.

    Args:
        num_classes: number of classes, background included.
        backbone_weights: torchvision's name ("IMAGENET1K_V1"), or the path of a file of mobilenet_v2.
        image_size: side of square images or (H, W), in pixels.
        head_stride8: also predict boxes at stride 8, for small objects.
        freeze_norm: freeze BatchNorm; None freezes it if backbone_weights are given. The state dict is the same.
        frozen_blocks: number of MobileNetV2's 19 blocks that are not trained, from the input on. 4 (strides 2 and 4) save
            a third of a training step on a CPU; use them with a frozen norm.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of candidates of each class before the NMS.
        detections_per_image: number of detections of an image.
    """
    freeze = backbone_weights is not None if freeze_norm is None else freeze_norm
    backbone = MobileNetV2(freeze)
    if backbone_weights is not None:
        state = select(load_state(backbone_weights, "mobilenet_v2"), "features.")
        fill(backbone.features, state, backbone_weights, "the state dict of torchvision's mobilenet_v2")
    backbone.features[:frozen_blocks].requires_grad_(False)
    first = 1 if head_stride8 else 2
    head_levels = tuple(range(first, len(backbone.out_channels)))
    scales = (SCALE_STRIDE8, *SCALES) if head_stride8 else SCALES
    anchors = AnchorLayout(ssd_shapes(scales, [(2.0, 3.0)] * len(head_levels)))
    heads = build_heads([backbone.out_channels[level] for level in head_levels], anchors.per_cell, num_classes)
    return SSD(
        backbone, heads, anchors, head_levels, num_classes, parse_size(image_size), IMAGENET_MEAN, IMAGENET_STD,
        score_threshold, nms_threshold, top_k, detections_per_image,
    )  # fmt: skip


def build_heads(channels: Sequence[int], anchors_per_cell: Sequence[int], num_classes: int) -> list[nn.Sequential]:
    """Build one box head for each head level, given its channels and its number of anchors per cell."""
    heads = [
        reduced_head(width, HEAD_WIDTH, anchors * (num_classes + 4), NORM_GROUPS)
        for width, anchors in zip(channels, anchors_per_cell, strict=True)
    ]
    for head in heads:
        init_convolutions(head)
        init_small(head[-1])
    return heads
