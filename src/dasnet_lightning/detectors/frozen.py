"""A frozen detector answers the same protocol: stage two sees no difference, and nothing in it can move.

Frozen is a type, not a flag: neither `train()` of an outer module nor a checkpoint callback can thaw what is inside.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target


class FrozenDetector(nn.Module):
    """Wraps a detector for stage two: no gradients, no optimizer state, evaluation mode for good."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        assert isinstance(detector, nn.Module)
        self.frozen = Frozen(detector)
        self.num_classes = detector.num_classes
        self.image_size = detector.image_size
        self.strides = detector.strides
        self.out_channels = detector.out_channels

    @property
    def detector(self) -> Detector:
        return self.frozen.module  # type: ignore[return-value]

    @torch.no_grad()
    def features(self, images: Images) -> Pyramid:
        return self.detector.features(images)

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        return self.detector.detect(pyramid)

    @torch.no_grad()
    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        return self.detector.losses(pyramid, targets)


class Frozen(nn.Module):
    """Holds a module in evaluation mode with gradients off: parameters and buffers stay bit-identical.

    BatchNorm statistics do not move and dropout is inactive also after `train()` of an outer module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(False)
        return self
