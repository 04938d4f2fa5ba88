"""Detectors: stage one trains them, stage two freezes them. Importing this package registers every builder."""

from dasnet_lightning.detectors import (  # noqa: F401  (imported to register)
    dense_models,
    faster_rcnn_models,
    given_boxes,
    mobilenet_v2,
    ssd300,
    ssd_staged,
    ssdlite,
    tiny,
    transformers_models,
    vgg16,
)
from dasnet_lightning.detectors.base import DETECTORS, Detector, build_detector, learns_boxes, portable_options

__all__ = ["DETECTORS", "Detector", "build_detector", "learns_boxes", "portable_options"]
