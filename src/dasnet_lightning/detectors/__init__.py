"""Detectors, which stage one trains and stage two freezes. Importing this package registers every builder."""

from dasnet_lightning.detectors import (  # noqa: F401  (imported to register)
    faster_rcnn_builders,
    given_boxes,
    huggingface_builders,
    retinanet_fcos,
)
from dasnet_lightning.detectors.base import DETECTORS, Detector, build_detector, portable_options
from dasnet_lightning.detectors.ssd import (  # noqa: F401  (imported to register)
    any_backbone,
    ssd300_mobilenet_v2,
    ssd300_vgg16,
    ssd320_mobilenet_v2,
    ssd320_vgg16,
    ssd_tiny,
    ssdlite320,
)

__all__ = ["DETECTORS", "Detector", "build_detector", "portable_options"]
