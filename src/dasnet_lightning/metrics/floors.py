"""Floors of the mask metrics: what filled rectangles and filled ellipses in the boxes reach without any network."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dasnet_lightning.functional.boxes import restore_boxes
from dasnet_lightning.metrics.instance import InstanceAP
from dasnet_lightning.metrics.semantic import SemanticIoU
from dasnet_lightning.types import Batch, Detections, Prediction

Fill = Callable[[Tensor, Tensor, Tensor], Tensor]


def fill_rectangle(box: Float[Tensor, " 4"], y: Tensor, x: Tensor) -> Bool[Tensor, "H W"]:
    """Return the pixels whose centers lie in the box (xyxy); `y` and `x` are the centers of all pixels."""
    return (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])


def fill_ellipse(box: Float[Tensor, " 4"], y: Tensor, x: Tensor) -> Bool[Tensor, "H W"]:
    """Return the pixels whose centers lie in the ellipse that touches the sides of the box (xyxy)."""
    (x0, y0, x1, y1), half = box.tolist(), 0.5
    if x1 <= x0 or y1 <= y0:
        return torch.zeros_like(x, dtype=torch.bool)
    return ((x - half * (x0 + x1)) / (half * (x1 - x0))) ** 2 + ((y - half * (y0 + y1)) / (half * (y1 - y0))) ** 2 <= 1


FLOORS: Mapping[str, Fill] = {"rectangle": fill_rectangle, "ellipse": fill_ellipse}


def predict_floor(
    fill: Fill,
    detections: Detections,
    input_size: tuple[int, int],
    size: tuple[int, int],
    score_threshold: float = 0.0,
) -> Prediction:
    """Return a filled shape in each box as its mask, and the class map of the same shapes.

    Args:
        fill: one of FLOORS.
        detections: boxes in input pixels.
        input_size: (height, width) of the network input.
        size: (height, width) of the masks.
        score_threshold: lowest score of the boxes in the class map. The best score lies on top, of equal ones the smallest
            mask.
    """
    detections = Detections(detections.boxes.cpu(), detections.labels.cpu(), detections.scores.cpu())
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    boxes = restore_boxes(detections.boxes, input_size, size)
    masks = torch.stack([fill(box, y, x) for box in boxes]) if len(boxes) else torch.zeros(0, *size) > 0
    semantic = torch.zeros(size, dtype=torch.int64)
    scores, areas = detections.scores.tolist(), masks.flatten(1).sum(dim=1).tolist()
    for index in sorted(range(len(boxes)), key=lambda index: (scores[index], -areas[index])):
        if scores[index] >= score_threshold:
            semantic[masks[index]] = detections.labels[index]
    return Prediction(detections, masks, semantic)


class FloorMetrics:
    """Metric that measures the floors on the boxes of each kind, as `SegmentationTask.observers` call it.

    Args:
        num_classes: number of classes with background.
        lowest_score: lowest score of the detections that get a mask.
        score_threshold: lowest score of the detections in the class map.
        given: kinds of boxes that count whatever their score.
    """

    def __init__(self, num_classes: int, lowest_score: float, score_threshold: float, given: Sequence[str]) -> None:
        self.num_classes = num_classes
        self.lowest_score, self.score_threshold, self.given = lowest_score, score_threshold, tuple(given)
        self._metrics: dict[tuple[str, str], tuple[InstanceAP, SemanticIoU]] = {}

    def __call__(self, source: str, batch: Batch, boxes: Sequence[Detections]) -> None:
        """Add images with their boxes; images without a ground truth are left out."""
        input_size = (batch.images.shape[2], batch.images.shape[3])
        lowest, threshold = (0.0, 0.0) if source in self.given else (self.lowest_score, self.score_threshold)
        for image_id, target, detections in zip(batch.image_ids, batch.targets, boxes, strict=True):
            if target.truth is None:
                continue
            size = (target.truth.semantic.shape[0], target.truth.semantic.shape[1])
            kept = detections.scores >= lowest
            selected = Detections(detections.boxes[kept], detections.labels[kept], detections.scores[kept])
            for name, fill in FLOORS.items():
                prediction = predict_floor(fill, selected, input_size, size, threshold)
                mask_ap, iou = self._metrics.setdefault((name, source), (InstanceAP(), SemanticIoU(self.num_classes)))
                mask_ap.update([image_id], [prediction], [target], input_size)
                iou.update(prediction.semantic, target.truth.semantic.cpu())

    def compute(self, class_names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return for each floor its values by NAME_SOURCE, as `SegmentationTask.metrics` without "val/"."""
        values: dict[str, dict[str, float]] = {name: {} for name in FLOORS}
        for (name, source), (mask_ap, iou) in self._metrics.items():
            for key, value in (dict(iou.by_class(class_names)) | dict(mask_ap.compute(class_names))).items():
                metric, slash, class_name = key.partition("/")
                values[name][f"{metric}_{source}{slash}{class_name}"] = value
        return values
