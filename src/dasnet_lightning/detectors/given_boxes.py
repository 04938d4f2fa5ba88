"""The detector `boxes`, for users whose boxes come from elsewhere: it computes features for the decoder and detects nothing.

Training and the evaluation "with ground-truth boxes" take the annotated boxes. In use, pass the boxes to
`Segmenter.segment(image, boxes=..., labels=...)`. The evaluation "with detected boxes" has no detections.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dasnet_lightning.detectors.backbones import MultiScaleBackbone, build_backbone
from dasnet_lightning.detectors.base import DETECTORS, Detector
from dasnet_lightning.detectors.layers import parse_size
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target


class GivenBoxes(Detector):
    """Backbone with the interface of a detector; `learns_boxes` is False, so stage one is skipped."""

    mean: Tensor
    std: Tensor
    learns_boxes = False

    def __init__(self, backbone: MultiScaleBackbone, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.image_size = image_size
        self.strides = backbone.strides
        self.out_channels = backbone.out_channels
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Images) -> Pyramid:
        """See `Detector.features`."""
        levels, _ = self.backbone((images - self.mean) / self.std)
        return Pyramid(levels=levels, strides=self.strides, size=(images.shape[-2], images.shape[-1]))

    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """Return empty detections for each image."""
        level = pyramid.levels[0]
        labels = torch.zeros(0, dtype=torch.int64, device=level.device)
        empty = Detections(torch.zeros(0, 4, device=level.device), labels, torch.zeros(0, device=level.device))
        return (empty,) * len(level)

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Return a zero that is connected to the backbone."""
        return {"nothing": torch.stack([level.float().mean() for level in pyramid.levels]).sum() * 0.0}


@DETECTORS.register("boxes")
def build_boxes(
    num_classes: int,
    backbone: str = "resnet18",
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    freeze_norm: bool | None = None,
) -> GivenBoxes:
    """Build the detector for given boxes on a backbone by name.

    Args:
        num_classes: number of classes, background included.
        backbone: torchvision's name ("resnet18", "convnext_tiny", ...) or "timm:NAME" (needs dasnet-lightning[timm]).
        backbone_weights: path of a file of that network, torchvision's name ("IMAGENET1K_V1") or timm's tag ("a1_in1k").
            Without weights the decoder is trained on the features of an untrained backbone.
        image_size: side of square images or (H, W), in pixels.
        freeze_norm: freeze BatchNorm in joint training; None freezes it if backbone_weights are given.
    """
    size = parse_size(image_size)
    return GivenBoxes(build_backbone(backbone, backbone_weights, size, freeze_norm), num_classes, size)
