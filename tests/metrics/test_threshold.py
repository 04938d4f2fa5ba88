"""The threshold is that of the best mIoU of box maps, which painted by hand gives the same."""

import torch

from dasnet_lightning.metrics.semantic import SemanticIoU
from dasnet_lightning.metrics.threshold import HIGHEST, LOWEST, best_score_threshold
from dasnet_lightning.types import Detections
from toy import make_target

SIZE = (64, 64)  # a cell of the map is a pixel
BOXES = [[0.0, 0, 20, 20], [24, 24, 60, 60]]


def found(boxes, labels, scores):
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels), torch.tensor(scores))


def paint(boxes, labels):
    painted = torch.zeros(SIZE, dtype=torch.int64)
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        painted[int(y0) : int(y1), int(x0) : int(x1)] = label
    return painted


def miou(detections, target, threshold):
    metric = SemanticIoU(3)
    order = [n for n in detections.scores.argsort().tolist() if detections.scores[n] >= threshold]
    boxes, labels = detections.boxes[order].tolist(), detections.labels[order].tolist()
    metric.update(paint(boxes, labels), paint(target.boxes.tolist(), target.labels.tolist()))
    return metric.by_class(["background", "a", "b"])["miou"]


def test_is_the_threshold_of_the_best_map():
    generator = torch.Generator().manual_seed(0)
    target = make_target(BOXES, [1, 2])
    wrong = [[40.0, 0, 60, 10], [0.0, 30, 20, 50]]
    thresholds = set()
    for _ in range(20):
        scores = torch.rand(4, generator=generator) * 0.8 + 0.08
        detections = Detections(torch.tensor(BOXES + wrong), torch.tensor([1, 2, 1, 2]), scores)
        threshold = best_score_threshold([detections], [target], SIZE, 3)
        best = max(miou(detections, target, 0.05 * step) for step in range(1, 19))
        assert miou(detections, target, threshold) == best
        thresholds.add(threshold)
    assert len(thresholds) > 3


def test_the_middle_of_equal_thresholds_is_taken():
    detections = found([BOXES[0], BOXES[1], [40.0, 0, 60, 10]], [1, 2, 2], [0.9, 0.82, 0.22])
    threshold = best_score_threshold([detections], [make_target(BOXES, [1, 2])], SIZE, 3)
    assert 0.45 <= threshold <= 0.6


def test_ignored_objects_do_not_count_but_objects_inside_them_do():
    target = make_target([*BOXES, [0.0, 0, 64, 22]], [1, 2, 1])
    fields = {name: getattr(target, name) for name in target.__dataclass_fields__}
    ignoring = type(target)(**fields | {"ignore": torch.tensor([False, False, True])})
    inside_crowd = [40.0, 0, 60, 20]
    # the false box lies in the crowd: it costs nothing, so the low threshold that finds object 2 is the best
    detections = found([BOXES[0], BOXES[1], inside_crowd], [1, 2, 2], [0.9, 0.12, 0.8])
    assert best_score_threshold([detections], [ignoring], SIZE, 3) <= 0.12
    # object 1 counts although the crowd covers it
    late = found([BOXES[0], BOXES[1]], [1, 2], [0.12, 0.9])
    assert best_score_threshold([late], [ignoring], SIZE, 3) <= 0.12


def test_nothing_right_and_nothing_at_all():
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert best_score_threshold([nothing], [make_target(BOXES, [1, 2])], SIZE, 3) == HIGHEST
    assert best_score_threshold([nothing], [make_target([], [])], SIZE, 3) == HIGHEST
    doubtful = found([BOXES[0]], [1], [0.051])
    assert best_score_threshold([doubtful], [make_target(BOXES[:1], [1])], SIZE, 3) == LOWEST
