"""A detector of about a million parameters for small images, for the demo, the tests and quick experiments on a CPU."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.layers import init_convolutions, init_small, parse_size
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, dense_shapes
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.detectors.weights import fill, load_state_file

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
STEM = 16
WIDTHS = (32, 64, 96, 128, 128)  # strides 4 to 64
SCALES = ((0.16, 0.22), (0.3, 0.4), (0.5, 0.56), (0.62, 0.7))  # strides 8 to 64


def _build_block(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )


class TinyBackbone(nn.Module):
    """Six strided stages of 3x3 convolutions with BatchNorm; levels at strides 4, 8, 16, 32 and 64."""

    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    out_channels: tuple[int, ...] = WIDTHS

    def __init__(self) -> None:
        super().__init__()
        self.stem = _build_block(3, STEM, stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(_build_block(before, after, stride=2), _build_block(after, after, stride=1))
            for before, after in zip((STEM, *WIDTHS), WIDTHS, strict=False)
        )
        init_convolutions(self)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[tuple[Float[Tensor, "b _ _ _"], ...], None]:
        """Return the levels of normalized images, finest first, and None for the switches."""
        x, levels = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return tuple(levels), None


@DETECTORS.register("ssd_tiny")
def build_ssd_tiny(
    num_classes: int,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 128,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.45,
    top_k: int = 400,
    detections_per_image: int = 200,
) -> SSD:
    """Build a small SSD for images of 96 to 160 pixels.

    Args:
        num_classes: number of classes, background included.
        backbone_weights: path of a file with the state dict of another ssd_tiny's `backbone`; none are published.
        image_size: side of square images or (H, W), in pixels.
        score_threshold: lowest score of a detection.
        nms_threshold: IoU above which the NMS suppresses a box of the same class.
        top_k: number of candidates of each class before the NMS.
        detections_per_image: number of detections of an image.
    """
    backbone = TinyBackbone()
    if backbone_weights is not None:
        fill(backbone, load_state_file(Path(backbone_weights)), backbone_weights, "the backbone of an ssd_tiny")
    head_levels = (1, 2, 3, 4)
    anchors = AnchorLayout(dense_shapes(SCALES))
    heads = [
        nn.Conv2d(backbone.out_channels[level], number * (num_classes + 4), 3, padding=1)
        for level, number in zip(head_levels, anchors.per_cell, strict=True)
    ]
    for head in heads:
        init_small(head)
    return SSD(
        backbone, heads, anchors, head_levels, num_classes, parse_size(image_size), MEAN, STD,
        score_threshold, nms_threshold, top_k, detections_per_image,
    )  # fmt: skip
