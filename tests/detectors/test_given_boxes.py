"""The detector `boxes`, which has features but no detections, in the whole library."""

import json

import pytest
import torch
from torch.nn import functional as F

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.detectors import Detector, build_detector
from dasnet_lightning.functional.regions import ground_truth_detections, regions_by_class
from dasnet_lightning.inference.segmenter import load
from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from toy import make_target

SIZE = (64, 96)
BOX = [8.0, 8, 40, 56]


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", ["resnet18", "timm:test_convnext"])
def test_answers_the_protocol_and_finds_nothing(backbone, images):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    detector = build_detector("boxes", 4, backbone=backbone, image_size=SIZE)
    assert isinstance(detector, Detector)
    assert not detector.learns_boxes
    assert build_detector("ssd_tiny", 4).learns_boxes
    assert detector.num_classes == 4
    assert detector.image_size == SIZE
    passes = []
    detector.backbone.register_forward_hook(lambda *_: passes.append(1))
    pyramid = detector.features(images)
    found = detector.detect(pyramid)
    losses = detector.losses(pyramid, [make_target([BOX], [1], size=SIZE)] * 2)
    assert len(passes) == 1
    assert pyramid.strides == detector.strides == (4, 8, 16, 32)
    assert tuple(level.shape[1] for level in pyramid.levels) == detector.out_channels
    assert [(item.boxes.shape, len(item.labels), len(item.scores)) for item in found] == [((0, 4), 0, 0)] * 2
    assert [float(value.detach()) for value in losses.values()] == [0.0]
    losses["nothing"].backward()  # joint training asks for it
    assert all(p.grad is not None and not p.grad.any() for p in detector.parameters())


def test_pixels_are_normalized_as_the_backbone_wants(images):
    detector = build_detector("boxes", 4, image_size=SIZE).eval()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        levels, _ = detector.backbone((images - mean) / std)
        assert torch.equal(levels[0], detector.features(images).levels[0])


def test_stage_two_trains_and_the_backbone_stays_bit_identical(images):
    model = build_dasnet(4, "boxes", {"image_size": SIZE}, decoder="light").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    targets = [make_target([BOX], [label], size=SIZE) for label in (1, 2)]
    pyramid = model.detector.features(images)
    logits = model.decode(pyramid, regions_by_class([ground_truth_detections(target) for target in targets]))
    F.cross_entropy(logits, torch.ones(len(logits), *SIZE, dtype=torch.int64)).backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    torch.optim.AdamW(learning, lr=1e-2).step()
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items() if key.startswith("detector."))
    assert not torch.equal(before["decoder.top.weight"], after["decoder.top.weight"])


def test_a_run_goes_straight_to_stage_two(tmp_path, capsys):
    shapes = write_synthetic(tmp_path / "shapes", num_train=8, num_val=4, size=64)
    out = tmp_path / "run"
    options = ["--detector", "boxes", "--detector-option", "backbone=mobilenet_v3_small", "--image-size", "64"]
    options += ["--weights", "none", "--steps", "3", "--batch-size", "2", "--num-workers", "0", "--accelerator", "cpu"]
    assert main(["train", str(shapes), "--out", str(out), "--precision", "32-true", *options]) == 0
    assert "'boxes' does not learn from boxes" in capsys.readouterr().out
    stage_one = read_checkpoint(out / "detector" / "final.ckpt")
    assert stage_one["global_step"] == 0
    assert read_checkpoint(out / "masks-all" / "final.ckpt")["global_step"] == 3
    results = json.loads((out / "results.json").read_text())
    metrics = results["budgets"][0]["metrics"]
    assert results["detection"]["val/box_ap50"] == 0.0
    assert metrics["val/miou_ground_truth_boxes"] > 0

    segmenter = load(out / "masks-all" / "final.ckpt")
    path = next((shapes / "val").iterdir())
    assert len(segmenter.segment(path)) == 0
    assert len(segmenter.segment(path, boxes=[BOX], labels=[1])) == 1
