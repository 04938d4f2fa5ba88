"""The contract of every registered detector; registering a builder is enough to have it tested.

Large networks take a second to initialize and a second for each backward pass. So each is built once, restored after a test
that changed it, and copied without initialization. Tests of the heads run backward to the pyramid only.
"""

import io
from dataclasses import replace

import pytest
import torch
from tiny_transformers import TINY
from torch import nn
from torch.nn import functional as F

from dasnet_lightning.detectors import DETECTORS, Detector, build_detector
from dasnet_lightning.functional.regions import ground_truth_detections, regions_by_class
from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.types import Target

NUM_CLASSES = 4
# Detectors that are nothing without options, or that many options change: a colon, then what is special. Their options
# stand in OPTIONS, like those of the others.
WITH_OPTIONS = ("ssd:timm", *(f"transformers:{kind}" for kind in TINY))
NOT_BY_NAME = ("transformers", "boxes")  # needs options; learns nothing and finds nothing, see test_given_boxes.py
CASES = (*(name for name in DETECTORS.names() if name not in NOT_BY_NAME), *WITH_OPTIONS)
LIBRARIES = {"ssd:timm": "timm"} | {f"transformers:{kind}": "transformers" for kind in TINY}  # each an extra of ours
SIZES = {  # else 64 x 64
    "ssd320_vgg16": (257, 257),
    "ssd300_vgg16": (257, 257),
    "ssd_tiny": (96, 128),
    "ssd320_mobilenet_v2": (128, 96),
    "ssd300_mobilenet_v2": (128, 96),
    "ssdlite320_mobilenet_v3_large": (128, 96),
}
RATES = {  # else 5e-3
    "ssd_tiny": 1e-3,
    "ssd300_mobilenet_v2": 1e-2,
    "ssd320_mobilenet_v2": 1e-2,
    "retinanet_resnet50_fpn_v2": 1e-2,
    "fcos_resnet50_fpn": 3e-2,
    "faster_rcnn_resnet50_fpn_v2": 2e-2,
    "ssd320_vgg16": 1e-3,
    "ssd300_vgg16": 1e-3,
    "transformers:detr": 2e-2,
}
IMAGES = {"ssd320_vgg16": 1, "ssd300_vgg16": 1}  # else 2
STEPS = {  # else 3
    "ssd300_mobilenet_v2": 10,
    "ssd320_mobilenet_v2": 10,
    "ssd_tiny": 6,
    "retinanet_resnet50_fpn_v2": 7,
    "fcos_resnet50_fpn": 4,
    "faster_rcnn_resnet50_fpn_v2": 5,
    "transformers:detr": 6,
    "transformers:rt_detr": 6,
    "transformers:d_fine": 6,
}
OPTIONS = {  # few regions for the costly box heads; an untrained focal loss believes in nothing
    "faster_rcnn_resnet50_fpn": {"top_k": 50, "box_samples": 64},
    "faster_rcnn_resnet50_fpn_v2": {"top_k": 20, "box_samples": 32},
    "retinanet_resnet50_fpn_v2": {"score_threshold": 0.005},
    "fcos_resnet50_fpn": {"score_threshold": 0.05},
    "ssd:timm": {"backbone": "timm:test_resnet"},
    **{f"transformers:{kind}": {"model": config, "image_size": 64} for kind, config in TINY.items()},
}


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


def registered(name):
    """Return the name of the detector of a case."""
    return name.partition(":")[0]


def build(name, **options):
    return build_detector(registered(name), NUM_CLASSES, **{**OPTIONS.get(name, {}), **options})


@pytest.fixture(scope="module", params=CASES)
def name(request):
    if request.param in LIBRARIES:
        pytest.importorskip(LIBRARIES[request.param])
    return request.param


@pytest.fixture(scope="module")
def size(name):
    return SIZES.get(name, (64, 64))


@pytest.fixture(scope="module")
def built(name):
    """Return the detector and the state to restore."""
    torch.manual_seed(0)
    detector = build(name)
    return detector, {key: value.clone() for key, value in detector.state_dict().items()}


@pytest.fixture
def detector(built):
    """Return the detector in its initial state and in training mode; a test may train it."""
    detector, state = built
    detector.load_state_dict(state)
    detector.zero_grad()
    return detector.train()


@pytest.fixture(scope="module")
def images(name, size):
    return torch.rand(IMAGES.get(name, 2), 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pyramid(built, images):
    """Return the outputs of the detector in its initial state and in evaluation mode."""
    detector, state = built
    detector.load_state_dict(state)
    with torch.no_grad():
        return detector.eval().features(images)


@pytest.fixture
def undrawn(monkeypatch):
    """Build without initialization, for a network whose state is loaded or does not matter."""
    for function in ("normal_", "xavier_uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_"):
        monkeypatch.setattr(nn.init, function, lambda tensor, *_, **__: nn.init.constant_(tensor, 0.01))


def total(losses):
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    return torch.stack(tuple(losses.values())).sum()


def assert_gradients(detector):
    learning = [(key, p) for key, p in detector.named_parameters() if p.requires_grad]
    assert [key for key, p in learning if p.grad is None] == []
    assert all(p.grad.isfinite().all() for _, p in learning)


def assert_heads_learn(detector, pyramid, targets):
    """Losses from a detached pyramid give a gradient to every parameter outside the backbone."""
    leaves = tuple(level.detach().clone().requires_grad_() for level in pyramid.levels)
    loss = total(detector.losses(replace(pyramid, levels=leaves), targets))
    loss.backward()
    learning = [(key, p) for key, p in detector.named_parameters() if p.requires_grad and "backbone." not in key]
    assert [key for key, p in learning if p.grad is None or not p.grad.isfinite().all()] == []
    reached = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert reached
    assert all(grad.isfinite().all() for grad in reached)


class TestConformance:
    def test_attributes_agree_with_the_pyramid(self, detector, pyramid, images, size):
        assert isinstance(detector, nn.Module)
        assert isinstance(detector, Detector)
        assert detector.num_classes == NUM_CLASSES
        assert all(isinstance(side, int) for side in detector.image_size)
        assert pyramid.size == size
        assert pyramid.strides == detector.strides == tuple(sorted(detector.strides))
        assert tuple(level.shape[1] for level in pyramid.levels) == detector.out_channels
        for level, stride in zip(pyramid.levels, detector.strides, strict=True):
            assert level.shape[0] == len(images)
            for side, cells in zip(size, level.shape[-2:], strict=True):
                assert abs(side / stride - cells) < 1.3  # conv8_2 of the paper: 100 pixels apart at 320

    def test_one_backbone_pass_serves_detections_and_losses(self, detector, images, size):
        passes = []
        hook = detector.backbone.register_forward_hook(lambda *_: passes.append(1))
        with torch.no_grad():
            pyramid = detector.features(images)
            detector.detect(pyramid)
            detector.losses(pyramid, [make_target(size)] * len(images))
        hook.remove()
        assert len(passes) == 1

    @pytest.mark.parametrize("training", [False, True])
    def test_detections_are_sorted_and_inside(self, detector, pyramid, size, training):
        detector.train(training)
        found = detector.detect(pyramid)
        assert len(found) == len(pyramid.levels[0])
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
        optimizer = torch.optim.SGD(detector.parameters(), lr=RATES.get(name, 5e-3), momentum=0.9)
        history = []
        for step in range(STEPS.get(name, 3) + 1):
            torch.manual_seed(0)
            with torch.set_grad_enabled(step < STEPS.get(name, 3)):
                loss = total(detector.losses(detector.features(images), targets))
            history.append(loss.item())
            if loss.requires_grad:
                optimizer.zero_grad()
                loss.backward()
                assert_gradients(detector)
                nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
                optimizer.step()
        assert history[-1] < 0.9 * history[0]

    def test_images_without_an_object_train(self, detector, images, size):
        total(detector.losses(detector.features(images), [make_target(size, 0)] * len(images))).backward()
        assert_gradients(detector)

    def test_ignored_objects_leave_no_parameter_without_gradient(self, detector, pyramid, size):
        assert_heads_learn(detector, pyramid, [make_target(size, ignore=True)] * len(pyramid.levels[0]))

    def test_losses_are_the_same_kind_in_eval_mode(self, detector, pyramid, size):
        targets = [make_target(size)] * len(pyramid.levels[0])
        with torch.no_grad():
            keys = detector.eval().losses(pyramid, targets).keys()
            assert keys == detector.train().losses(pyramid, targets).keys()

    def test_state_dict_reproduces_the_outputs(self, name, detector, pyramid, images, size, undrawn):
        file = io.BytesIO()
        torch.save(detector.state_dict(), file)
        file.seek(0)
        other = build(name, score_threshold=0.0, detections_per_image=3)
        other.load_state_dict(torch.load(file, weights_only=True))
        targets = [make_target(size)] * len(images)
        with torch.no_grad():
            again = other.eval().features(images)
            assert all(torch.equal(*pair) for pair in zip(pyramid.levels, again.levels, strict=True))
            losses = []
            for each in (detector.eval(), other):
                torch.manual_seed(0)
                losses.append(each.losses(pyramid, targets))
            assert losses[0] == losses[1]
            best = [item.boxes[:3] for item in detector.detect(pyramid)]
            assert [len(item.boxes) for item in other.detect(again)] == [3] * len(images)  # the limit
            for kept, all_ in zip(other.detect(again), best, strict=True):
                assert torch.equal(kept.boxes[: len(all_)], all_)

    def test_anchors_are_not_part_of_the_state_dict(self, detector, pyramid):
        before = set(detector.state_dict())
        detector.detect(pyramid)
        assert set(detector.state_dict()) == before
        assert not [key for key in before if "anchor" in key]

    def test_nothing_found_is_an_empty_record(self, name, pyramid, undrawn):
        detector = build(name, score_threshold=1.0).eval()
        found = detector.detect(pyramid)
        assert [(item.boxes.shape, len(item.labels), len(item.scores)) for item in found] == [((0, 4), 0, 0)] * len(
            pyramid.levels[0]
        )

    def test_works_under_autocast(self, detector, images, size):
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                pyramid = detector.features(images.contiguous(memory_format=torch.channels_last))
            found = detector.detect(pyramid)
            assert_heads_learn(detector, pyramid, [make_target(size)] * len(images))
        assert pyramid.levels[0].dtype == torch.bfloat16
        assert all(item.boxes.dtype == item.scores.dtype == torch.float32 for item in found)

    def test_stage_two_trains_and_the_detector_stays_bit_identical(self, name, images, size, undrawn):
        model = build_dasnet(NUM_CLASSES, registered(name), OPTIONS.get(name), decoder="light").train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        targets = [make_target(size)] * len(images)
        pyramid = model.detector.features(images)
        model.detector.detect(pyramid)
        losses = model.detector.losses(pyramid, targets)
        assert not any(tensor.requires_grad for tensor in (*pyramid.levels, *losses.values()))
        regions = regions_by_class([ground_truth_detections(target) for target in targets])
        logits = model.decode(pyramid, regions)
        assert logits.shape == (2 * len(images), 2, *size)
        F.cross_entropy(logits, torch.ones(len(logits), *size, dtype=torch.int64)).backward()
        learning = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
        assert not any(key.startswith("detector.") for key, _ in learning)
        assert [key for key, p in learning if p.grad is None] == []
        torch.optim.AdamW([p for _, p in learning], lr=1e-2).step()
        after = model.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items() if key.startswith("detector."))
        assert not any(torch.equal(before[key], after[key]) for key, p in learning if p.ndim > 1)
