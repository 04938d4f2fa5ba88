import pytest
import torch

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.truth import torchvision_target
from dasnet_lightning.types import Target


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector("faster_rcnn_resnet50_fpn", 4)


def make_target(boxes, labels, ignore):
    return Target(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.tensor(labels),
        has_mask=torch.zeros(len(labels), dtype=torch.bool),
        ignore=torch.tensor(ignore),
    )


def test_ignored_objects_are_neither_positives_nor_negatives(detector):
    target = make_target(
        [[0.0, 0.0, 30.0, 30.0], [40.0, 40.0, 60.0, 60.0], [5.0, 5.0, 5.0, 9.0]], [2, 3, 1], [True, False, False]
    )
    truth = torchvision_target(target)
    assert truth["labels"].tolist() == [3, -1]  # the real one first; the one without area is gone
    proposals = torch.tensor(
        [[1.0, 1.0, 29.0, 29.0], [5.0, 5.0, 9.0, 9.0], [41.0, 40.0, 60.0, 60.0], [0.0, 40.0, 20.0, 60.0]]
    )
    matched, labels = detector.roi_heads.assign_targets_to_proposals([proposals], [truth["boxes"]], [truth["labels"]])
    assert labels[0].tolist() == [-1, -1, 3, 0]
    assert matched[0][2].item() == 0
    labels, _ = detector.rpn.assign_targets_to_anchors([proposals], [truth])
    assert labels[0].tolist() == [-1, -1, 1, 0]


def test_an_image_that_is_one_ignored_object_gives_finite_losses(detector):
    pyramid = detector.features(torch.rand(2, 3, 64, 64))
    target = make_target([[0.0, 0.0, 64.0, 64.0]], [1], [True])
    losses = detector.losses(pyramid, [target, target])
    assert losses["classification"].item() == 0
    assert all(loss.isfinite() and loss.requires_grad for loss in losses.values())


def test_neither_mode_nor_statistics_are_touched(detector):
    detector.eval()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    pyramid = detector.features(torch.rand(1, 3, 64, 64))
    detector.losses(pyramid, [make_target([[0.0, 0.0, 30.0, 30.0]], [2], [False])])
    detector.detect(pyramid)
    assert not any(module.training for module in detector.modules())
    assert all(torch.equal(detector.state_dict()[key], value) for key, value in before.items())


def test_proposals_stay_float32_under_autocast(detector):
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        pyramid = detector.features(torch.rand(2, 3, 64, 64))
        _, proposals, _ = detector._propose(pyramid, None)
    assert {boxes.dtype for boxes in proposals} == {torch.float32}
