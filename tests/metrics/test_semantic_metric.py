import math

import pytest
import torch

from dasnet_lightning.metrics.semantic import SemanticIoU

NAMES = ("background", "a", "b", "never")


def test_equals_counting_by_hand_over_the_whole_set():
    metric = SemanticIoU(4)
    generator = torch.Generator().manual_seed(0)
    predictions = [torch.randint(0, 3, (7, 9), generator=generator) for _ in range(3)]
    targets = [torch.randint(0, 3, (7, 9), generator=generator).to(torch.uint8) for _ in range(3)]
    targets[0][:2] = 255
    for prediction, target in zip(predictions, targets, strict=True):
        metric.update(prediction, target)
    expected = {}
    for label in range(3):
        both = sum(int(((p == label) & (t == label)).sum()) for p, t in zip(predictions, targets, strict=True))
        either = sum(
            int((((p == label) | (t == label)) & (t != 255)).sum()) for p, t in zip(predictions, targets, strict=True)
        )
        expected[label] = both / either
    assert metric.by_class(NAMES)["miou"] == pytest.approx(sum(expected.values()) / 3)
    assert metric.by_class(NAMES)["iou/b"] == pytest.approx(expected[2])
    assert math.isnan(metric.by_class(NAMES)["iou/never"])


def test_a_class_only_in_the_prediction_harms_the_true_class_alone():
    metric = SemanticIoU(3)
    metric.update(torch.tensor([[1, 1, 2, 0]]), torch.tensor([[1, 1, 1, 0]]))
    assert float(metric.compute().nanmean()) == pytest.approx((2 / 3 + 1) / 2)


def test_class_255_is_a_class_among_300_and_void_is_apart():
    metric = SemanticIoU(301)
    target = torch.tensor([[255, 255, 256, 300, -1, -1]], dtype=torch.int16)
    metric.update(torch.tensor([[255, 256, 256, 300, 255, 7]]), target)
    by_class = metric.compute()
    assert by_class[[255, 256, 300]].tolist() == pytest.approx([1 / 2, 1 / 2, 1])
    assert int(metric.confusion.sum()) == 4
