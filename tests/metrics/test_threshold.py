import torch

from dasnet_lightning.metrics.threshold import HIGHEST, LOWEST, best_score_threshold
from dasnet_lightning.types import Detections
from toy import make_target

BOXES = [[0.0, 0, 10, 10], [12, 12, 30, 30]]


def found(boxes, labels, scores):
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels), torch.tensor(scores))


def f1(detections, target, threshold):
    """Counted by hand for detections that hit their objects exactly or not at all."""
    kept = [
        (box, label)
        for box, label, score in zip(
            detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True
        )
        if score >= threshold
    ]
    truth = list(zip(target.boxes.tolist(), target.labels.tolist(), strict=True))
    hits = sum(pair in kept for pair in truth)
    return 2 * hits / (len(kept) + len(truth))


def test_is_the_threshold_of_the_best_f1():
    generator = torch.Generator().manual_seed(0)
    target = make_target(BOXES, [1, 2])
    wrong = [[20.0, 0, 30, 5]] * 4
    for _ in range(20):
        scores = torch.rand(6, generator=generator) * 0.8 + 0.08
        detections = Detections(torch.tensor(BOXES + wrong), torch.tensor([1, 2, 1, 1, 2, 2]), scores)
        threshold = best_score_threshold([detections], [target])
        best = max(f1(detections, target, float(score)) for score in scores)
        assert f1(detections, target, threshold) == best


def test_duplicates_are_wrong_and_ignored_objects_do_not_count():
    target = make_target(BOXES, [1, 2])
    fields = {name: getattr(target, name) for name in target.__dataclass_fields__}
    ignoring = type(target)(**fields | {"ignore": torch.tensor([False, True])})
    detections = found([BOXES[0], BOXES[0], BOXES[1]], [1, 1, 2], [0.8, 0.3, 0.9])
    threshold = best_score_threshold([detections], [ignoring])
    assert abs(threshold - 0.8) < 1e-6


def test_nothing_right_and_nothing_at_all():
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert best_score_threshold([nothing], [make_target(BOXES, [1, 2])]) == HIGHEST
    assert best_score_threshold([nothing], [make_target([], [])]) == HIGHEST
    certain = found([BOXES[0]], [1], [0.99])
    assert best_score_threshold([certain], [make_target(BOXES[:1], [1])]) == HIGHEST
    doubtful = found([BOXES[0]], [1], [0.051])
    assert best_score_threshold([doubtful], [make_target(BOXES[:1], [1])]) >= LOWEST
