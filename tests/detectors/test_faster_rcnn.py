from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.torchvision_targets import torchvision_target
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


def test_mobilenet_v2_takes_imagenet_weights_and_freezes_its_first_blocks(shared):
    path = shared / "weights" / "mobilenet_v2_in1k.pth"
    detector = build_detector("faster_rcnn_mobilenet_v2_fpn", 4, backbone_weights=str(path), frozen_blocks=4).train()
    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(torch.load(path, weights_only=True))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        normal = (images - detector.mean) / detector.std
        torch.testing.assert_close(detector.backbone.body(normal)["3"], network.eval().features(normal))
    learning = {key.split(".")[0] for key, p in detector.backbone.body.named_parameters() if p.requires_grad}
    assert learning == {str(number) for number in range(4, 19)}
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in detector.modules())


def test_a_file_of_mobilenet_v2_weights_fits_the_narrow_pyramid(tmp_path):
    state = torchvision.models.mobilenet_v2().state_dict()
    torch.save(state, tmp_path / "m.pth")
    options = {"backbone_weights": str(tmp_path / "m.pth"), "channels": 64, "freeze_norm": False}
    detector = build_detector("faster_rcnn_mobilenet_v2_fpn", 4, **options)
    assert torch.equal(detector.backbone.body["18"][0].weight, state["features.18.0.weight"])
    assert detector.out_channels == (64,) * 5
    detector.eval().load_state_dict(build_detector("faster_rcnn_mobilenet_v2_fpn", 4, channels=64).state_dict())
    with torch.no_grad():
        pyramid = detector.features(torch.rand(1, 3, 96, 64))
    assert [tuple(level.shape[-2:]) for level in pyramid.levels] == [(24, 16), (12, 8), (6, 4), (3, 2), (2, 1)]


def test_raw_levels_are_for_the_decoder_alone():
    """torchvision's fast detector predicts from strides 32 and 64; finer levels do not change the boxes."""
    torch.manual_seed(0)
    detector = build_detector("faster_rcnn_mobilenet_v3_large_320_fpn", 4, score_threshold=0.0, top_k=5).eval()
    with torch.no_grad():
        pyramid = detector.features(torch.rand(1, 3, 64, 64))
        changed = replace(pyramid, levels=(*(level + 9 for level in pyramid.levels[:3]), *pyramid.levels[3:]))
        first, second = detector.detect(pyramid)[0], detector.detect(changed)[0]
    assert pyramid.strides == (4, 8, 16, 32, 32, 64)
    assert len(first.boxes) > 0
    assert torch.equal(first.boxes, second.boxes)


def test_an_image_of_which_nothing_is_proposed_has_no_detections():
    detector = build_detector("faster_rcnn_mobilenet_v3_large_320_fpn", 4, proposal_threshold=1.0).eval()
    with torch.no_grad():
        (found,) = detector.detect(detector.features(torch.rand(1, 3, 64, 64)))
    assert found.boxes.shape == (0, 4)
