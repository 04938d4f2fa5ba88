"""Filled rectangles and ellipses: their pixels, and the metrics that they reach on hand-made truths."""

import math

import numpy as np
import pytest
import torch

from dasnet_lightning.metrics.floors import FloorMetrics, fill_window, floor_prediction
from dasnet_lightning.rle import encode
from dasnet_lightning.types import Detections, GroundTruth, Target

SIZE, INPUT = (20, 40), (40, 80)


def test_pixels_whose_center_lies_inside_are_filled():
    window, filled = fill_window(np.array([0.6, -3.0, 3.5, 2.4]), "rectangle", SIZE)
    assert window == (slice(0, 2), slice(1, 3))
    assert filled.all()
    window, filled = fill_window(np.array([0.0, 0, 4, 4]), "ellipse", SIZE)
    assert filled.astype(int).tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    _, filled = fill_window(np.array([0.0, 0, 40, 20]), "ellipse", SIZE)
    assert filled.mean() == pytest.approx(math.pi / 4, abs=0.01)


@pytest.mark.parametrize("box", [[50.0, 30, 60, 40], [5, 5, 5, 5], [9, 9, 3, 3]])
@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
def test_boxes_outside_or_without_area_are_empty(box, shape):
    assert fill_window(np.array(box, dtype=float), shape, SIZE)[1].sum() == 0


def test_the_best_score_wins_in_the_class_map_and_then_the_smallest_box():
    boxes = torch.tensor([[0.0, 0, 40, 20], [0, 0, 20, 20], [40, 0, 60, 20]])
    found = Detections(boxes, torch.tensor([1, 2, 3]), torch.tensor([0.5, 0.5, 0.2]))
    semantic = floor_prediction(found, "rectangle", INPUT, SIZE, score_threshold=0.3).semantic
    assert semantic[0, [0, 9, 10, 19, 20, 30]].tolist() == [2, 2, 1, 1, 0, 0]
    low = Detections(boxes, torch.tensor([1, 2, 3]), torch.tensor([0.9, 0.5, 0.2]))
    assert floor_prediction(low, "rectangle", INPUT, SIZE).semantic[0, [0, 19, 20, 30]].tolist() == [1, 1, 3, 0]


def test_a_rectangle_is_perfect_on_rectangles_and_an_ellipse_is_not():
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, 2:18, 4:36] = True
    target = Target(
        boxes=torch.tensor([[8.0, 4, 72, 36]]),
        labels=torch.tensor([1]),
        has_mask=torch.tensor([True]),
        ignore=torch.tensor([False]),
        truth=GroundTruth(mask[0].short(), tuple(encode(mask))),
    )
    metric = FloorMetrics(2)
    found = Detections(target.boxes, target.labels, torch.ones(1))
    metric.update(["a"], [found], [target], INPUT)
    values = metric.compute(("background", "box"))
    assert values["rectangle"]["miou"] == pytest.approx(values["rectangle"]["coco_ap"]) == 1.0
    assert values["rectangle"]["apr75_area/box"] == 1.0
    share = values["ellipse"]["iou/box"]
    assert share == pytest.approx(math.pi / 4, abs=0.02)
    assert values["ellipse"]["apr75_area"] == 1.0  # the IoU is 0.78
    assert 0.5 < values["ellipse"]["coco_ap"] < 1.0
    metric.reset()
    assert metric.compute(("background", "box"))["rectangle"]["apr50_area"] == -1.0
