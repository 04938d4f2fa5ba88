"""SSD on any backbone by name (detectors.backbones), torchvision's or timm's, with the heads of ssd320_mobilenet_v2.

Boxes are predicted from stride 16 on (optionally from 8), at levels of the backbone and extra levels, six in total. Finer
levels of the backbone are for the decoder.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from dasnet_lightning.detectors.backbones import MultiScaleBackbone, build_backbone
from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.layers import extra_levels, parse_size
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, ssd_shapes
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.detectors.ssd.ssd320_mobilenet_v2 import NORM_GROUPS, SCALE_STRIDE8, SCALES, build_heads
from dasnet_lightning.errors import ConfigError

HEAD_LEVELS = 6
COARSE = 16  # stride of the first level that predicts boxes
EXTRA_WIDTHS = (512, 256, 256, 128, 128)


class ExtendedBackbone(nn.Module):
    """A backbone with extra levels, each half as large as the one before."""

    def __init__(self, body: MultiScaleBackbone) -> None:
        super().__init__()
        own = sum(stride >= COARSE for stride in body.strides)
        widths = EXTRA_WIDTHS[: HEAD_LEVELS - own]
        self.body = body
        self.extras = extra_levels(body.out_channels[-1], [(width // 2, width) for width in widths], NORM_GROUPS)
        self.strides = (*body.strides, *(body.strides[-1] * 2**number for number in range(1, len(widths) + 1)))
        self.out_channels = (*body.out_channels, *widths)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[tuple[Float[Tensor, "b _ _ _"], ...], None]:
        """Return the levels of normalized images, finest first, and None for the switches."""
        levels, _ = self.body(images)
        x, all_levels = levels[-1], list(levels)
        for extra in self.extras:
            x = extra(x)
            all_levels.append(x)
        return tuple(all_levels), None


@DETECTORS.register("ssd")
def build_ssd(
    num_classes: int,
    backbone: str = "resnet18",
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    head_stride8: bool = False,
    freeze_norm: bool | None = None,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.45,
    top_k: int = 400,
    detections_per_image: int = 200,
) -> SSD:
    """Build SSD on a backbone by name.

    Args:
        num_classes: number of classes, background included.
        backbone: torchvision's name ("resnet18", "convnext_tiny", ...) or "timm:NAME" (needs dasnet-lightning[timm]).
        backbone_weights: path of a file of that network, torchvision's name ("IMAGENET1K_V1") or timm's tag ("a1_in1k").
        image_size: side of square images or (H, W), in pixels.
        head_stride8: also predict boxes at stride 8, for small objects.
        freeze_norm: freeze BatchNorm; None freezes it if backbone_weights are given.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of candidates of each class before the NMS.
        detections_per_image: number of detections of an image.
    """
    size = parse_size(image_size)
    extended = ExtendedBackbone(build_backbone(backbone, backbone_weights, size, freeze_norm))
    first = next((level for level, stride in enumerate(extended.strides) if stride >= COARSE), 0)
    if head_stride8 and first == 0:
        raise ConfigError(
            f"head_stride8 needs a level at stride 8, but backbone '{backbone}' has no level at stride 8: its strides are "
            f"{extended.strides}"
        )
    head_levels = tuple(range(first - 1 if head_stride8 else first, len(extended.strides)))
    scales = (SCALE_STRIDE8, *SCALES) if head_stride8 else SCALES
    anchors = AnchorLayout(ssd_shapes(scales, [(2.0, 3.0)] * len(head_levels)))
    heads = build_heads([extended.out_channels[level] for level in head_levels], anchors.per_cell, num_classes)
    return SSD(
        extended, heads, anchors, head_levels, num_classes, size, extended.body.mean, extended.body.std,
        score_threshold, nms_threshold, top_k, detections_per_image,
    )  # fmt: skip
