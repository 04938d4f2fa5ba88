"""Floors of the metrics: what a filled rectangle and a filled ellipse in the same boxes reach, without any network.

A mask metric says something about a decoder only in comparison with these shapes.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import nn

from dasnet_lightning.functional.boxes import restore_boxes
from dasnet_lightning.metrics.coco_evaluators import Evaluator
from dasnet_lightning.metrics.instance import InstanceAP
from dasnet_lightning.metrics.semantic import SemanticIoU
from dasnet_lightning.types import Detections, Prediction, Target

FLOORS = ("rectangle", "ellipse")

Window = tuple[slice, slice]


def fill_window(
    box: Float[np.ndarray, " 4"], shape: str, size: tuple[int, int]
) -> tuple[Window, Bool[np.ndarray, "h w"]]:
    """Fill a shape in a box: a pixel belongs to it if its center lies inside.

    Args:
        box: xyxy in pixels of the image.
        shape: one of `FLOORS`; the ellipse touches the four sides of the box.
        size: (height, width) of the image.

    Returns:
        The rows and columns of the pixels in the box, clipped to the image, and the mask of this window.
    """
    x0, x1 = np.clip(np.ceil(box[[0, 2]] - 0.5), 0, size[1]).astype(int).tolist()
    y0, y1 = np.clip(np.ceil(box[[1, 3]] - 0.5), 0, size[0]).astype(int).tolist()
    window = slice(y0, max(y0, y1)), slice(x0, max(x0, x1))
    if shape == "rectangle":
        return window, np.ones((max(0, y1 - y0), max(0, x1 - x0)), dtype=bool)
    radius, center = np.maximum(box[2:] - box[:2], 1e-9) / 2, (box[2:] + box[:2]) / 2
    x = (np.arange(x0, window[1].stop) + 0.5 - center[0]) / radius[0]
    y = (np.arange(y0, window[0].stop) + 0.5 - center[1]) / radius[1]
    return window, x[None] ** 2 + y[:, None] ** 2 <= 1


def floor_prediction(
    detections: Detections, shape: str, input_size: tuple[int, int], size: tuple[int, int], score_threshold: float = 0.0
) -> Prediction:
    """Return the prediction whose masks are filled boxes.

    Args:
        detections: boxes in pixels of the network input.
        shape: one of `FLOORS`.
        input_size: (height, width) of the network input.
        size: (height, width) of the image.
        score_threshold: detections from this score on enter the class map. Where boxes overlap, the best score wins,
            and the smallest box among equal scores.
    """
    scores = detections.scores.cpu().double().numpy()
    boxes = restore_boxes(detections.boxes.cpu().double(), input_size, size).numpy()
    masks = np.zeros((len(boxes), *size), dtype=bool)
    semantic = np.zeros(size, dtype=np.int64)
    windows = [fill_window(box, shape, size) for box in boxes]
    for mask, (window, filled) in zip(masks, windows, strict=True):
        mask[window] = filled
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    labels = detections.labels.tolist()
    for index in np.lexsort((-area, scores)).tolist():
        window, filled = windows[index]
        if scores[index] >= score_threshold:
            semantic[window][filled] = labels[index]
    return Prediction(detections, torch.from_numpy(masks), torch.from_numpy(semantic))


class FloorMetrics(nn.Module):
    """Metric that accumulates filled rectangles and ellipses in the boxes that a network was given.

    A repeated image id, from a padded sampler, counts once in the mask AP. All ranks must call `compute`.

    Args:
        num_classes: number of classes with background.
        evaluator: the implementation of COCO's protocol (`metrics.coco_evaluators`).
    """

    def __init__(self, num_classes: int, evaluator: Evaluator = "built-in") -> None:
        super().__init__()
        self.iou = nn.ModuleDict({shape: SemanticIoU(num_classes) for shape in FLOORS})
        self.mask_ap = {shape: InstanceAP(evaluator) for shape in FLOORS}

    def update(
        self,
        image_ids: Sequence[str],
        detections: Sequence[Detections],
        targets: Sequence[Target],
        input_size: tuple[int, int],
        score_threshold: float = 0.0,
    ) -> None:
        """Add images; an image whose target has no `truth` is skipped.

        Args:
            image_ids: the id of each image.
            detections: the boxes of each image, in pixels of the network input, with the detector's scores.
            targets: the ground truth of each image.
            input_size: (height, width) of the network input.
            score_threshold: detections from this score on enter the class map.
        """
        for image_id, image_detections, target in zip(image_ids, detections, targets, strict=True):
            if target.truth is None:
                continue
            size = (target.truth.semantic.shape[0], target.truth.semantic.shape[1])
            for shape, iou in self._iou_by_shape():
                prediction = floor_prediction(image_detections, shape, input_size, size, score_threshold)
                self.mask_ap[shape].update([image_id], [prediction], [target], input_size)
                iou.update(prediction.semantic.to(target.truth.semantic.device), target.truth.semantic)

    def compute(self, class_names: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        """Return for each shape the values of `SemanticIoU.by_class` and `InstanceAP.compute`."""
        return {
            shape: {**iou.by_class(class_names), **self.mask_ap[shape].compute(class_names)}
            for shape, iou in self._iou_by_shape()
        }

    def reset(self) -> None:
        """Forget all images."""
        for shape, iou in self._iou_by_shape():
            iou.reset()
            self.mask_ap[shape].reset()

    def _iou_by_shape(self) -> Iterator[tuple[str, SemanticIoU]]:
        for shape, iou in self.iou.items():
            assert isinstance(iou, SemanticIoU)
            yield shape, iou
