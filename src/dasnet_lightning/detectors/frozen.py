"""Frozen modules and detectors, whose parameters and buffers never change.

Frozen is a type, not a flag: neither `train()` of an outer module nor a checkpoint callback can unfreeze it. A frozen
detector has the interface of any other detector.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target


class Frozen(nn.Module):
    """Keeps a module in evaluation mode without gradients, so that parameters and buffers stay bit-identical.

    BatchNorm statistics do not change and dropout stays inactive, also after `train()` of an outer module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode."""
        super().train(False)
        return self


class FrozenDetector(Detector):
    """Detector for stage two: without gradients and optimizer state, always in evaluation mode."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.frozen = Frozen(detector)
        self.num_classes = detector.num_classes
        self.image_size = detector.image_size
        self.strides = detector.strides
        self.out_channels = detector.out_channels
        self.pool_shapes = detector.pool_shapes
        self.learns_boxes = detector.learns_boxes
        self.portable_options = detector.portable_options

    @property
    def detector(self) -> Detector:
        """The wrapped detector."""
        return self.frozen.module  # type: ignore[return-value]

    @torch.no_grad()
    def features(self, images: Images) -> Pyramid:
        """See `Detector.features`."""
        return self.detector.features(images)

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """See `Detector.detect`."""
        return self.detector.detect(pyramid)

    @torch.no_grad()
    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """See `Detector.losses`."""
        return self.detector.losses(pyramid, targets)
