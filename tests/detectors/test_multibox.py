from math import log

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from dasnet_lightning.detectors.ssd.multibox import (
    claim_best_anchors,
    classification_losses,
    match_anchors,
    mine_negatives,
    multibox_loss,
    pad_targets,
)
from dasnet_lightning.functional.boxes import encode_boxes
from dasnet_lightning.types import Target


def make_target(boxes=(), labels=(), ignore=None):
    ignore = [False] * len(labels) if ignore is None else ignore
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        has_mask=torch.zeros(len(labels), dtype=torch.bool),
        ignore=torch.tensor(ignore, dtype=torch.bool),
    )


def random_target(generator, number):
    corner = torch.rand(number, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 4 + torch.rand(number, 2, generator=generator) * 36], dim=1)
    labels = torch.randint(1, 4, (number,), generator=generator)
    ignore = torch.rand(number, generator=generator) < 0.25
    return make_target(boxes.tolist(), labels.tolist(), ignore.tolist())


def grid_anchors():
    rows = [(x, y, x + s, y + s) for s in (16.0, 32.0) for y in range(0, 96, 12) for x in range(0, 96, 12)]
    return torch.tensor(rows)


def slow_match(anchors, target, threshold=0.5):
    """Match one pair at a time and return the label and object of every anchor."""
    labels, owners = [0] * len(anchors), [0] * len(anchors)
    real = [i for i in range(len(target.labels)) if not target.ignore[i]]
    iou = box_iou(target.boxes, anchors).tolist() if len(target.labels) else []
    for a, anchor in enumerate(anchors.tolist()):
        for i in set(range(len(target.labels))) - set(real):
            x0, y0, x1, y1 = target.boxes[i].tolist()
            width = max(0.0, min(anchor[2], x1) - max(anchor[0], x0))
            height = max(0.0, min(anchor[3], y1) - max(anchor[1], y0))
            if width * height > 0.5 * (anchor[2] - anchor[0]) * (anchor[3] - anchor[1]):
                labels[a] = -1
        best = max(real, key=lambda i: iou[i][a], default=None)
        if best is not None and iou[best][a] > threshold:
            labels[a], owners[a] = int(target.labels[best]), best
    pairs = {(i, a): iou[i][a] for i in real for a in range(len(anchors)) if iou[i][a] > 0}
    while pairs:
        i, a = max(pairs, key=lambda pair: pairs[pair])
        labels[a], owners[a] = int(target.labels[i]), i
        pairs = {pair: value for pair, value in pairs.items() if pair[0] != i and pair[1] != a}
    return labels, owners


def slow_loss(logits, offsets, anchors, targets):
    classification, box, positives, negatives = 0.0, 0.0, 0, 0
    for image, target in enumerate(targets):
        labels, owners = slow_match(anchors, target)
        entropy = [-F.log_softmax(logits[image, a], dim=0)[max(label, 0)] for a, label in enumerate(labels)]
        chosen = [a for a, label in enumerate(labels) if label > 0]
        background = sorted((a for a, label in enumerate(labels) if label == 0), key=lambda a: -float(entropy[a]))
        background = background[: 3 * len(chosen) if chosen else 16]
        classification += sum(float(entropy[a]) for a in chosen + background)
        for a in chosen:
            wanted = encode_boxes(target.boxes[owners[a]][None], anchors[a][None])[0]
            box += float(F.smooth_l1_loss(offsets[image, a], wanted, reduction="sum"))
        positives, negatives = positives + len(chosen), negatives + len(background)
    divisor = max(positives, negatives / 3)
    return classification / divisor, box / divisor


@pytest.mark.parametrize("seed", range(6))
def test_matching_equals_the_written_out_rule(seed):
    generator = torch.Generator().manual_seed(seed)
    anchors = grid_anchors()
    targets = [random_target(generator, number) for number in (0, 1, 5, 9)]
    labels, index = match_anchors(anchors, *pad_targets(targets))
    for image, target in enumerate(targets):
        expected, owners = slow_match(anchors, target)
        assert labels[image].tolist() == expected
        positive = labels[image] > 0
        assert index[image][positive].tolist() == [o for o, label in zip(owners, expected, strict=True) if label > 0]


@pytest.mark.parametrize("numbers", [(3, 0, 6), (0, 0), (1,)])
def test_loss_equals_the_written_out_rule(numbers):
    generator = torch.Generator().manual_seed(len(numbers))
    anchors = grid_anchors()
    targets = [random_target(generator, number) for number in numbers]
    logits = torch.randn(len(numbers), len(anchors), 4, generator=generator)
    offsets = torch.randn(len(numbers), len(anchors), 4, generator=generator)
    classification, box = multibox_loss(logits, offsets, anchors, targets)
    expected = slow_loss(logits, offsets, anchors, targets)
    assert (float(classification), float(box)) == pytest.approx(expected, rel=1e-4)


def test_equal_objects_get_an_anchor_each():
    anchors = grid_anchors()
    box = [14.0, 14.0, 27.0, 27.0]
    labels, index = match_anchors(anchors, *pad_targets([make_target([box] * 3, [1, 2, 3])]), threshold=0.9)
    assert sorted(index[0][labels[0] > 0].tolist()) == [0, 1, 2]
    assert sorted(labels[0][labels[0] > 0].tolist()) == [1, 2, 3]


def test_an_object_that_touches_no_anchor_claims_none():
    assert claim_best_anchors(torch.zeros(1, 2, 5)).tolist() == [[-1] * 5]


def test_ignored_objects_are_neither_positives_nor_negatives():
    anchors = grid_anchors()
    target = make_target([[0.0, 0.0, 96.0, 96.0]], [1], [True])
    labels, _ = match_anchors(anchors, *pad_targets([target]))
    assert labels.tolist() == [[-1] * len(anchors)] or set(labels[0].tolist()) == {-1, 0}
    inside = (anchors[:, 2:] <= 96).all(dim=1)
    assert (labels[0][inside] == -1).all()
    logits = torch.zeros(1, len(anchors), 3, requires_grad=True)
    multibox_loss(logits, torch.zeros(1, len(anchors), 4), anchors, [target])[0].backward()
    assert logits.grad[0][inside].abs().sum() == 0


def test_negatives_are_the_hardest_three_for_each_positive():
    labels = torch.tensor([[1, 0, 0, 0, 0, 0, -1], [0, 0, 0, 0, 0, 0, 0]])
    loss = torch.tensor([[9.0, 1, 5, 2, 4, 3, 9], [0.0, 0, 0, 0, 0, 0, 0]])
    chosen = mine_negatives(loss, labels, ratio=3, minimum=2)
    assert chosen[0].tolist() == [False, False, True, False, True, True, False]
    assert int(chosen[1].sum()) == 2  # equal losses: still exactly so many


def test_empty_batch_trains_the_background_and_stays_connected():
    anchors = grid_anchors()
    logits = torch.zeros(2, len(anchors), 3, requires_grad=True)
    offsets = torch.zeros(2, len(anchors), 4, requires_grad=True)
    classification, box = multibox_loss(logits, offsets, anchors, [make_target(), make_target()])
    (classification + box).backward()
    assert box.item() == 0
    assert 0 < classification.item() < 10
    assert logits.grad[..., 0].sum() < 0  # towards background
    assert offsets.grad is not None


def test_low_precision_outputs_give_a_float32_loss():
    anchors = grid_anchors()
    half = {"dtype": torch.bfloat16}
    losses = multibox_loss(
        torch.randn(1, len(anchors), 3, **half), torch.randn(1, len(anchors), 4, **half), anchors, [make_target()]
    )
    assert all(loss.dtype == torch.float32 for loss in losses)


def test_sigmoids_are_trained_one_by_one():
    """Each class, background included, has its own binary cross-entropy; the loss of an anchor is their sum."""
    logits = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 2, 1, 0, 2]])
    losses = classification_losses(logits, labels, sigmoid=True)
    for anchor, label in enumerate(labels[0].tolist()):
        scores = logits[0, anchor].sigmoid().tolist()
        expected = -sum(log(score if index == label else 1 - score) for index, score in enumerate(scores))
        assert losses[0, anchor].item() == pytest.approx(expected, rel=1e-5)
