import pytest
import torch

from dasnet_lightning.metrics.box import BoxAP
from dasnet_lightning.types import Detections
from toy import make_target

NAMES = ("background", "cat", "dog", "never")


def found(boxes, labels, scores):
    return Detections(torch.tensor(boxes), torch.tensor(labels), torch.tensor(scores))


def test_perfect_half_and_nothing():
    metric = BoxAP()
    target = make_target([[0.0, 0, 10, 10], [12, 12, 30, 30]], [1, 2])
    metric.update(["one"], [found([[0.0, 0, 10, 10], [12.0, 12, 30, 30]], [1, 1], [0.9, 0.8])], [target])
    values = metric.compute(NAMES)
    assert values["ap50/cat"] == pytest.approx(1.0)
    assert values["ap50/dog"] == pytest.approx(0.0)
    assert values["ap50"] == pytest.approx(0.5)
    assert "ap50/never" not in values
    metric.reset()
    metric.update(["one"], [found([[0.0, 0, 10, 10]], [1], [0.9])], [make_target([[0.0, 0, 10, 10]], [1])])
    assert metric.compute(NAMES)["ap"] == pytest.approx(1.0)


def test_ignored_objects_neither_count_nor_harm():
    metric = BoxAP()
    target = make_target([[0.0, 0, 10, 10], [12, 12, 30, 30]], [1, 1])
    fields = {name: getattr(target, name) for name in target.__dataclass_fields__}
    ignoring = type(target)(**fields | {"ignore": torch.tensor([False, True])})
    metric.update(["one"], [found([[0.0, 0, 10, 10], [12.0, 12, 30, 30]], [1, 1], [0.8, 0.9])], [ignoring])
    assert metric.compute()["ap50"] == pytest.approx(1.0)


def test_no_detection_is_zero():
    metric = BoxAP()
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    metric.update(["one"], [nothing], [make_target([[0.0, 0, 10, 10]], [1])])
    assert metric.compute(NAMES)["ap50"] == pytest.approx(0.0)
