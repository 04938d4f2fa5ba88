"""The detector `boxes`: features for the decoder and nothing else, for users whose boxes come from elsewhere.

It detects nothing, ever. The boxes reach the network by the roads that every detector shares: in training and in the
evaluation "with ground-truth boxes" they are the annotated ones, in use they are given to `Segmenter.segment(image,
boxes=..., labels=...)`. The evaluation "with detected boxes" says what an image is worth without any box: nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dasnet_lightning.detectors.backbones import MultiScaleBackbone, build_staged
from dasnet_lightning.detectors.base import DETECTORS, Detector
from dasnet_lightning.detectors.layers import parse_size
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target


class GivenBoxes(Detector):
    """A backbone behind the detector's protocol; `learns_boxes` tells the recipes that there is no stage one."""

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
        """Normalise the images (RGB, 0..1) and run the backbone once."""
        levels, _ = self.backbone((images - self.mean) / self.std)
        return Pyramid(levels=levels, strides=self.strides, size=(images.shape[-2], images.shape[-1]))

    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """No boxes: one empty entry for each image."""
        first = pyramid.levels[0]
        labels = torch.zeros(0, dtype=torch.int64, device=first.device)
        none = Detections(torch.zeros(0, 4, device=first.device), labels, torch.zeros(0, device=first.device))
        return (none,) * len(first)

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """There is nothing to learn from boxes: a zero that is connected to the backbone."""
        return {"nothing": torch.stack([level.float().mean() for level in pyramid.levels]).sum() * 0.0}


@DETECTORS.register("boxes")
def build_boxes(
    num_classes: int,
    backbone: str = "resnet18",
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 320,
    freeze_norm: bool | None = None,
) -> GivenBoxes:
    """Features of a backbone by name; the boxes are given.

    backbone: torchvision's name ("resnet18", "convnext_tiny", ...) or "timm:NAME" (needs dasnet-lightning[timm]).
    backbone_weights: a file of that network, torchvision's name ("IMAGENET1K_V1") or timm's tag ("a1_in1k"); without
    any the decoder learns on features that nobody trained. freeze_norm: hold BatchNorm in joint training; None means
    where backbone_weights are given.
    """
    size = parse_size(image_size)
    return GivenBoxes(build_staged(backbone, backbone_weights, size, freeze_norm), num_classes, size)
