"""Detectors: stage one trains them, stage two freezes them. Importing this package registers every builder."""

from dasnet_lightning.detectors import faster_rcnn, mobilenet_v2, tiny, vgg16  # noqa: F401  (imported to register)
from dasnet_lightning.detectors.base import DETECTORS, Detector, build_detector

__all__ = ["DETECTORS", "Detector", "build_detector"]
