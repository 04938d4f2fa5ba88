"""The networks of inference.py and training.py: torchvision's Mask R-CNNs, and DASNet as it is meant for processors.

All have random weights. The rivals are built as torchvision builds them for its pretrained weights: its norms, and its
trunks that do not learn. `fasterrcnn_mobilenet_v3_large_320_fpn` has no mask head of its own: it gets the one of
`maskrcnn_resnet50_fpn`, over the two levels that it reads boxes from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large, resnet50
from torchvision.models.detection import (
    MaskRCNN,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import _mobilenet_extractor, _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d

from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.instance import InstanceOptions, segment_instances
from dasnet_lightning.types import Detections, Prediction

NUM_CLASSES = 21
DETECTOR = "ssd320_mobilenet_v2"
DEFAULT_TRUNK = 3  # trainable_backbone_layers with pretrained weights; 5 are all of a ResNet, 6 of a MobileNet
NOTHING = {"weights": None, "weights_backbone": None}


@dataclass(frozen=True)
class Shape:
    """What all networks are built for: square images of `size` pixels, so many detections of each.

    rois: the boxes of an image that a rival learns from in a step, torchvision's number.
    """

    size: int = 320
    detections: int = 10
    num_classes: int = NUM_CLASSES
    rois: int = 512

    @property
    def options(self) -> dict[str, Any]:
        """Of a torchvision builder; with them it resizes nothing."""
        sizes = {"min_size": self.size, "max_size": self.size}
        numbers = {"box_detections_per_img": self.detections, "box_batch_size_per_image": self.rois}
        return NOTHING | sizes | numbers | {"num_classes": self.num_classes}


def build_resnet50(shape: Shape, trainable: int) -> MaskRCNN:
    """Mask R-CNN as of 2017."""
    network = maskrcnn_resnet50_fpn(**shape.options)
    trunk = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    network.backbone = _resnet_fpn_extractor(trunk, min(trainable, 5))
    return network


def build_resnet50_v2(shape: Shape, trainable: int) -> MaskRCNN:
    """Mask R-CNN with torchvision's later recipe: BatchNorm everywhere, heavier heads."""
    network = maskrcnn_resnet50_fpn_v2(**shape.options)
    network.backbone = _resnet_fpn_extractor(resnet50(weights=None), min(trainable, 5), norm_layer=nn.BatchNorm2d)
    return network


def build_mobilenet_v3(shape: Shape, trainable: int) -> FasterRCNN:
    """Torchvision's light Faster R-CNN for 320 pixels with Mask R-CNN's mask head."""
    network = fasterrcnn_mobilenet_v3_large_320_fpn(**shape.options)
    trunk = mobilenet_v3_large(weights=None, norm_layer=FrozenBatchNorm2d)
    network.backbone = _mobilenet_extractor(trunk, True, trainable)
    heads, channels = network.roi_heads, network.backbone.out_channels
    heads.mask_roi_pool = MultiScaleRoIAlign(["0", "1"], 14, 2)
    heads.mask_head = MaskRCNNHeads(channels, (256, 256, 256, 256), 1)
    heads.mask_predictor = MaskRCNNPredictor(256, 256, shape.num_classes)
    return network


RIVALS: dict[str, Callable[[Shape, int], FasterRCNN]] = {
    "maskrcnn_resnet50_fpn": build_resnet50,
    "maskrcnn_resnet50_fpn_v2": build_resnet50_v2,
    "fasterrcnn_mobilenet_v3_large_320_fpn + masks": build_mobilenet_v3,
}


class RivalInference:
    """A rival from images in 0..1 to bool masks at their size.

    Random weights find nothing or everything, so `prepare` sets the score threshold to where `candidates` boxes of an image
    enter the NMS, as few do in a trained network; it runs for nothing, and then the `placed` boxes get masks.
    """

    def __init__(self, network: FasterRCNN, candidates: int) -> None:
        self.network = network.eval()
        self.candidates = candidates
        self.placed: Sequence[Detections] = ()
        self.input = self.proposals = 0
        self.select = network.roi_heads.postprocess_detections
        network.roi_heads.postprocess_detections = self._place
        network.backbone.register_forward_pre_hook(self._see)

    def prepare(self, images: Tensor, placed: Sequence[Detections]) -> None:
        self.placed, self.network.roi_heads.score_thresh = placed, None
        self(images)

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [found["masks"][:, 0] > 0.5 for found in self.network(list(images))]

    def _place(self, logits: Tensor, offsets: Tensor, proposals: list[Tensor], sizes: Any) -> tuple[list[Tensor], ...]:
        heads = self.network.roi_heads
        if heads.score_thresh is None:
            heads.score_thresh = _threshold(logits.softmax(dim=-1)[:, 1:], self.candidates * len(proposals))
            self.proposals = len(logits) // len(proposals)
        self.select(logits, offsets, proposals, sizes)
        placed = self.placed
        return [each.boxes for each in placed], [each.scores for each in placed], [each.labels for each in placed]

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.input = inputs[0].shape[-1]


class OurInference:
    """DASNet from images in 0..1 to masks and class map, under the same conditions."""

    def __init__(self, model: DASNet, candidates: int, detections: int) -> None:
        self.model = model.eval()
        self.candidates = candidates
        self.options = InstanceOptions(lowest_score=0.0, max_detections=detections)
        self.placed: Sequence[Detections] = ()
        self.input = 0

    def prepare(self, images: Tensor, placed: Sequence[Detections]) -> None:
        self.placed, self.input = placed, images.shape[-1]
        detector = self.model.detector.detector
        assert isinstance(detector, SSD)
        logits, _, _ = detector.predict(detector.features(images))
        detector.score_threshold = _threshold(logits.softmax(dim=2)[..., 1:], self.candidates * len(images))

    def __call__(self, images: Tensor) -> tuple[Prediction, ...]:
        pyramid = self.model.detector.features(images)
        self.model.detector.detect(pyramid)
        return segment_instances(self.model, pyramid, self.placed, [pyramid.size] * len(images), self.options)


def _threshold(scores: Tensor, candidates: int) -> float:
    """The score that so many boxes exceed."""
    return float(scores.float().flatten().topk(candidates + 1).values[-1])


def to_device(found: Detections, device: torch.device) -> Detections:
    """The same boxes elsewhere."""
    return replace(found, boxes=found.boxes.to(device), labels=found.labels.to(device), scores=found.scores.to(device))
