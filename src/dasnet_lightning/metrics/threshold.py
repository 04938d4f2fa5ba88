"""Choice of the score threshold from which detections count in class maps and are shown.

A fixed threshold does not work: softmax scores are low after a short training and high after a long one. The threshold with
the best F1 counts objects alike; class maps count pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from dasnet_lightning.metrics.semantic import SemanticIoU, class_iou
from dasnet_lightning.types import VOID, Detections, Target

LOWEST, HIGHEST, STEP = 0.05, 0.9, 0.05
GRID = 64  # cells per side of the maps


def best_score_threshold(
    detections: Sequence[Detections], targets: Sequence[Target], size: tuple[int, int], num_classes: int
) -> float:
    """Return the score threshold with the best mIoU of class maps made of filled boxes, in LOWEST..HIGHEST.

    The maps are coarse (64 x 64 cells). Of detected boxes that overlap the best score wins, of annotated boxes the smaller
    one. Cells inside ignored objects do not count. Of equally good thresholds the middle one is returned; if no detection
    is right at any, HIGHEST.

    Args:
        detections: the detections of each image.
        targets: the annotated boxes of each image.
        size: (H, W) of the network input, in pixels.
        num_classes: number of classes, background included.
    """
    candidates = np.arange(LOWEST, HIGHEST + STEP / 2, STEP)
    true_maps = [_true_map(target, size) for target in targets]
    values, right = [], False
    for threshold in candidates:
        metric = SemanticIoU(num_classes)
        for image_detections, true_map in zip(detections, true_maps, strict=True):
            metric.update(_detected_map(image_detections, float(threshold), size), true_map)
        right = right or bool(metric.confusion.diagonal()[1:].sum())
        values.append(float(class_iou(metric.confusion).nanmean()))  # not `compute`: only one rank chooses
    if not right:
        return HIGHEST
    equal = candidates[np.isclose(values, np.nanmax(values), rtol=0, atol=1e-9)]
    return round(float(equal[len(equal) // 2]), 2)


def _true_map(target: Target, size: tuple[int, int]) -> Int64[Tensor, "g g"]:
    areas = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(dim=1)
    areas = torch.where(target.ignore, torch.inf, areas)  # painted first: objects inside a crowd count
    order = areas.argsort(descending=True, stable=True)
    labels = torch.where(target.ignore, VOID, target.labels)
    return _paint(target.boxes[order].cpu(), labels[order].cpu(), size)


def _detected_map(detections: Detections, threshold: float, size: tuple[int, int]) -> Int64[Tensor, "g g"]:
    order = detections.scores.argsort(stable=True)
    order = order[detections.scores[order] >= threshold]
    return _paint(detections.boxes[order].cpu(), detections.labels[order].cpu(), size)


def _paint(boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> Int64[Tensor, "g g"]:
    """Fill boxes into a map, later ones over earlier ones."""
    painted = np.zeros((GRID, GRID), np.int64)
    scale = torch.tensor([size[1], size[0], size[1], size[0]]) / GRID
    cells = (boxes.float() / scale).round().long().clamp(0, GRID)
    for (x0, y0, x1, y1), label in zip(cells.tolist(), labels.tolist(), strict=True):
        painted[y0:y1, x0:x1] = label
    return torch.from_numpy(painted)
