import pytest
import torch

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.torchvision_targets import split_ignored
from dasnet_lightning.types import Pyramid, Target

NAMES = ("retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn")


@pytest.fixture(scope="module", params=NAMES)
def detector(request):
    torch.manual_seed(0)
    return build_detector(request.param, 4)


@pytest.fixture(scope="module")
def pyramid(detector):
    """Return arbitrary features; these tests do not need the backbone."""
    generator = torch.Generator().manual_seed(0)
    levels = tuple(torch.rand(2, 256, 128 // s, 128 // s, generator=generator) for s in detector.strides)
    return Pyramid(levels=levels, strides=detector.strides, size=(128, 128))


def make_target(boxes, labels, ignore):
    return Target(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        has_mask=torch.zeros(len(labels), dtype=torch.bool),
        ignore=torch.tensor(ignore, dtype=torch.bool),
    )


OBJECT = [20.0, 20.0, 60.0, 70.0]


def gradients(detector, pyramid, target):
    """Return the losses and the gradient of the class logits of each level's cells."""
    outputs, anchors, counts = detector.predict(pyramid)
    outputs = {key: value.detach().requires_grad_() for key, value in outputs.items()}
    losses = detector.model.compute_loss([split_ignored(target)] * 2, outputs, anchors, counts)
    losses["classification"].backward()
    return losses, outputs["cls_logits"].grad[0], anchors[0]


def test_targets_are_split():
    target = make_target([[0.0, 0.0, 9.0, 9.0], OBJECT, [5.0, 5.0, 5.0, 9.0]], [2, 3, 1], [True, False, False])
    truth = split_ignored(target)
    assert truth["labels"].tolist() == [3]
    assert truth["boxes"].tolist() == [OBJECT]
    assert truth["ignored"].tolist() == [[0.0, 0.0, 9.0, 9.0]]


def test_ignored_objects_are_neither_positives_nor_negatives(detector, pyramid):
    """Only predictions mostly inside the ignored object lose their gradient, and none becomes a positive."""
    plain, before, anchors = gradients(detector, pyramid, make_target([OBJECT], [2], [False]))
    ignored = torch.tensor([70.0, 10.0, 128.0, 128.0])
    both = make_target([OBJECT, ignored.tolist()], [2, 3], [False, True])
    losses, after, _ = gradients(detector, pyramid, both)
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    small = (anchors[:, 2:] - anchors[:, :2]).max(dim=1).values < 40
    inside = small & ((center > ignored[:2] + 21) & (center < ignored[2:] - 21)).all(dim=1)
    outside = small & ((center < ignored[:2] - 21) | (center > ignored[2:] + 21)).any(dim=1)
    assert inside.sum() > 20
    assert (before[inside] > 0).all()  # negatives, which are pushed down
    assert (after[inside] == 0).all()
    assert torch.equal(before[outside], after[outside])
    assert 0 < losses["classification"] < plain["classification"]
    assert torch.equal(losses["bbox_regression"], plain["bbox_regression"])


def test_an_object_inside_an_ignored_one_is_still_learned(detector, pyramid):
    everything = [0.0, 0.0, 128.0, 128.0]
    _, alone, _ = gradients(detector, pyramid, make_target([OBJECT], [2], [False]))
    _, covered, _ = gradients(detector, pyramid, make_target([OBJECT, everything], [2, 3], [False, True]))
    positive = alone[:, 2] < 0
    assert positive.any()
    assert torch.equal(alone[positive], covered[positive])


def test_images_without_real_objects_give_finite_losses(detector, pyramid):
    ignored = make_target([[0.0, 0.0, 128.0, 128.0]], [1], [True])
    losses = detector.losses(pyramid, [ignored, make_target([], [], [])])
    assert all(loss.isfinite() and loss.requires_grad for loss in losses.values())
    assert losses["box"].item() == 0


def test_the_background_is_no_answer_and_boxes_have_an_area(detector, pyramid, monkeypatch):
    """Class 0 is never detected, whatever its logit."""

    def answer(levels):
        counts = [level.shape[-2] * level.shape[-1] for level in levels]
        anchors = detector.model.anchor_generator.num_anchors_per_location()[0]
        logits = torch.full((2, sum(counts) * anchors, 4), -9.0)
        logits[..., 0] = 9.0
        logits[0, :4, 3] = torch.tensor([1.0, 4.0, 3.0, 2.0])
        offsets = torch.zeros(*logits.shape[:2], 4)
        if anchors == 1:
            offsets[0, :3] = 0.4  # FCOS: the fourth keeps no extent
        else:
            offsets[0, 3, 0] = -50.0  # RetinaNet: the fourth lies outside the image
        centerness = torch.full((2, sum(counts) * anchors, 1), 9.0)
        return {"cls_logits": logits, "bbox_regression": offsets, "bbox_ctrness": centerness}

    monkeypatch.setattr(detector.model.head, "forward", answer)
    monkeypatch.setattr(detector.model, "nms_thresh", 1.0)
    first, second = detector.detect(pyramid)
    assert first.labels.tolist() == [3, 3, 3]
    assert (first.scores.diff() < 0).all()
    assert len(second.labels) == 0
    monkeypatch.setattr(detector, "detections_per_image", 2)
    assert torch.equal(detector.detect(pyramid)[0].scores, first.scores[:2])
