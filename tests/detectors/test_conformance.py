"""What every registered detector promises: a builder is tested by being registered."""

import copy
import io

import pytest
import torch
from torch import nn

from dasnet_lightning.detectors import DETECTORS, Detector, build_detector
from dasnet_lightning.types import Target

NUM_CLASSES = 4
SIZES = {"ssd320_vgg16": (257, 257), "ssd_tiny": (96, 128), "ssd320_mobilenet_v2": (128, 96)}  # else 64 x 64
RATES = {"ssd320_mobilenet_v2": 1e-2, "faster_rcnn_resnet50_fpn": 5e-3}  # else 1e-3
IMAGES = {"ssd320_vgg16": 1}  # else 2; the big ones cost seconds a step
STEPS = {"ssd320_mobilenet_v2": 10, "ssd320_vgg16": 3, "faster_rcnn_resnet50_fpn": 4}  # else 6


def make_target(size, number=2, ignore=False):
    height, width = size
    boxes = [
        [0.1 * width, 0.1 * height, 0.6 * width, 0.7 * height],
        [0.5 * width, 0.4 * height, 0.95 * width, 0.9 * height],
    ]
    return Target(
        boxes=torch.tensor(boxes[:number]).reshape(-1, 4),
        labels=torch.arange(1, number + 1),
        has_mask=torch.zeros(number, dtype=torch.bool),
        ignore=torch.full((number,), ignore),
    )


@pytest.fixture(scope="module", params=DETECTORS.names())
def name(request):
    return request.param


@pytest.fixture(scope="module")
def size(name):
    return SIZES.get(name, (64, 64))


@pytest.fixture(scope="module")
def built(name):
    torch.manual_seed(0)
    return build_detector(name, NUM_CLASSES)


@pytest.fixture
def detector(built):
    """A fresh copy each time: a test may train it."""
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def images(name, size):
    return torch.rand(IMAGES.get(name, 2), 3, *size, generator=torch.Generator().manual_seed(1))


def total(losses):
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    return torch.stack(tuple(losses.values())).sum()


class TestConformance:
    def test_attributes_agree_with_the_pyramid(self, detector, images, size):
        assert isinstance(detector, nn.Module)
        assert isinstance(detector, Detector)
        assert detector.num_classes == NUM_CLASSES
        assert all(isinstance(side, int) for side in detector.image_size)
        with torch.no_grad():
            pyramid = detector.eval().features(images)
        assert pyramid.size == size
        assert pyramid.strides == detector.strides == tuple(sorted(detector.strides))
        assert tuple(level.shape[1] for level in pyramid.levels) == detector.out_channels
        for level, stride in zip(pyramid.levels, detector.strides, strict=True):
            assert level.shape[0] == len(images)
            for side, cells in zip(size, level.shape[-2:], strict=True):
                assert abs(side / stride - cells) < 1.3  # conv8_2 of the paper: 100 pixels apart at 320

    def test_one_backbone_pass_serves_detections_and_losses(self, detector, images, size):
        passes = []
        detector.backbone.register_forward_hook(lambda *_: passes.append(1))
        pyramid = detector.features(images)
        detector.detect(pyramid)
        detector.losses(pyramid, [make_target(size)] * len(images))
        assert len(passes) == 1

    @pytest.mark.parametrize("training", [False, True])
    def test_detections_are_sorted_and_inside(self, detector, images, size, training):
        detector.train(training)
        found = detector.detect(detector.features(images))
        assert len(found) == len(images)
        for item in found:
            assert not item.boxes.requires_grad
            assert item.boxes.dtype == item.scores.dtype == torch.float32
            assert len(item.boxes) == len(item.labels) == len(item.scores)
            assert (item.boxes >= 0).all()
            assert (item.boxes[:, [0, 2]] <= size[1]).all()
            assert (item.boxes[:, [1, 3]] <= size[0]).all()
            assert (item.boxes[:, 2:] > item.boxes[:, :2]).all()
            assert (item.scores.diff() <= 0).all()
            assert ((item.labels >= 1) & (item.labels < NUM_CLASSES)).all()
        assert sum(len(item.boxes) for item in found) > 0
        assert all(module.training == training for module in detector.modules() if len(list(module.parameters())) > 0)

    def test_training_lowers_the_loss(self, name, detector, images, size):
        targets = [make_target(size), make_target(size, 1)][: len(images)]
        optimizer = torch.optim.SGD(detector.parameters(), lr=RATES.get(name, 1e-3), momentum=0.9)
        history = []
        for _ in range(STEPS.get(name, 6)):
            torch.manual_seed(0)
            loss = total(detector.losses(detector.features(images), targets))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            history.append(loss.item())
        assert history[-1] < 0.9 * history[0]

    @pytest.mark.parametrize(("number", "ignore"), [(0, False), (2, False), (2, True)])
    def test_every_trainable_parameter_gets_a_gradient(self, detector, images, size, number, ignore):
        total(detector.losses(detector.features(images), [make_target(size, number, ignore)] * len(images))).backward()
        missing = [key for key, p in detector.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []
        assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)

    def test_losses_are_the_same_kind_in_eval_mode(self, detector, images, size):
        pyramid = detector.eval().features(images)
        keys = detector.losses(pyramid, [make_target(size)] * len(images)).keys()
        assert keys == detector.train().losses(pyramid, [make_target(size)] * len(images)).keys()

    def test_state_dict_reproduces_the_outputs(self, name, detector, images):
        file = io.BytesIO()
        torch.save(detector.state_dict(), file)
        file.seek(0)
        other = build_detector(name, NUM_CLASSES)
        other.load_state_dict(torch.load(file, weights_only=True))
        with torch.no_grad():
            first, second = (each.eval().detect(each.features(images))[0] for each in (detector, other))
        assert torch.equal(first.boxes, second.boxes)
        assert torch.equal(first.scores, second.scores)

    def test_anchors_are_not_part_of_the_state_dict(self, detector, images):
        before = set(detector.state_dict())
        detector.detect(detector.features(images))
        assert set(detector.state_dict()) == before
        assert not [key for key in before if "anchor" in key]

    def test_nothing_found_is_an_empty_record(self, name, images):
        detector = build_detector(name, NUM_CLASSES, score_threshold=1.0).eval()
        with torch.no_grad():
            found = detector.detect(detector.features(images))
        assert [(item.boxes.shape, len(item.labels), len(item.scores)) for item in found] == [((0, 4), 0, 0)] * len(
            images
        )

    def test_detections_per_image_is_a_limit(self, name, images):
        detector = build_detector(name, NUM_CLASSES, score_threshold=0.0, detections_per_image=3).eval()
        with torch.no_grad():
            assert [len(item.boxes) for item in detector.detect(detector.features(images))] == [3] * len(images)

    def test_works_under_autocast(self, detector, images, size):
        with torch.autocast("cpu", torch.bfloat16):
            pyramid = detector.features(images.contiguous(memory_format=torch.channels_last))
            found = detector.detect(pyramid)
            loss = total(detector.losses(pyramid, [make_target(size)] * len(images)))
        loss.backward()
        assert pyramid.levels[0].dtype == torch.bfloat16
        assert all(item.boxes.dtype == item.scores.dtype == torch.float32 for item in found)
