"""`dasnet train --task instance` from the data to a report, with joint training, and what its checkpoints answer."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.boxes import pixel_windows
from dasnet_lightning.inference.segmenter import load
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.training import mask_stage as stage_two

OPTIONS = [
    *("--task", "instance", "--mask-budget", "6", "--joint-steps", "2", "--score-threshold", "0.02"),
    *("--detector", "ssd_tiny", "--image-size", "64", "--detector-batch-size", "4", "--batch-size", "4"),
    *("--detector-steps", "6", "--steps", "4", "--num-workers", "0", "--accelerator", "cpu", "--precision", "32-true"),
]
BOXES = [[60.0, 10, 80, 50], [5.0, 5, 37, 31], [7.25, 3.5, 41.75, 29.5], [0.0, 0, 80, 50], [3.0, 45, 4, 46]]


@pytest.fixture(scope="module", autouse=True)
def _few_detections() -> Iterator[None]:
    """A detector of six steps believes in everything a little: without a limit, evaluation would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_two, "InstanceOptions", partial(InstanceOptions, max_detections=5))
        yield


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=16, num_val=6, size=64)


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert main(["train", str(shapes), "--out", str(out), *OPTIONS]) == 0
    return out


def test_a_run_leaves_both_kinds_of_figures_behind(finished):
    results = json.loads((finished / "results.json").read_text())
    assert [item["budget"] for item in results["budgets"]] == ["6", "6, joint"]
    assert [item["mask_images"] for item in results["budgets"]] == [6, 6]
    for item in results["budgets"]:
        for figure in ("miou", "apr50_area", "apr75_11point", "coco_ap"):
            for boxes in ("ground_truth_boxes", "detected_boxes"):
                assert 0 <= item["metrics"][f"val/{figure}_{boxes}"] <= 1
    first, joint = results["budgets"]
    assert "val/box_ap50" not in first["metrics"]
    assert 0 <= joint["metrics"]["val/box_ap50"] <= 1


def test_the_report_shows_both_tables_and_the_detector(finished):
    page = (finished / "report.html").read_text()
    assert page.index("Instance segmentation") < page.index("Semantic segmentation")
    assert "mAP^r 0.5 (area)" in page
    assert "The detector in joint training" in page
    assert "AP^r 0.5 (area) by class, detected boxes" in page
    assert page.count("data:image/png;base64") >= 3


def test_stage_two_keeps_the_detector_and_joint_training_does_not(finished):
    first = read_checkpoint(finished / "detector" / "final.ckpt")["state_dict"]
    second = read_checkpoint(finished / "masks-6" / "final.ckpt")["state_dict"]
    joint = read_checkpoint(finished / "masks-6" / "joint" / "final.ckpt")["state_dict"]
    for key, value in first.items():
        name = key.removeprefix("detector.")
        assert torch.equal(value, second[f"model.detector.frozen.module.{name}"]), key
    weights = [key.removeprefix("detector.") for key, value in first.items() if value.ndim == 4]
    assert all(not torch.equal(first[f"detector.{name}"], joint[f"model.detector.{name}"]) for name in weights)


def test_starting_a_finished_run_again_trains_nothing(finished, shapes, capsys):
    checkpoints = sorted(finished.rglob("final.ckpt"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    assert len(before) == 3
    assert main(["train", str(shapes), "--out", str(finished), *OPTIONS]) == 0
    assert capsys.readouterr().err.count("done before") == 3
    assert [path.stat().st_mtime_ns for path in checkpoints] == before


def test_the_other_task_in_the_same_folder_is_refused(finished, shapes, capsys):
    assert main(["train", str(shapes), "--out", str(finished), *OPTIONS, "--task", "semantic"]) == 2
    assert "task was 'instance' and is 'semantic'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["masks-6/final.ckpt", "masks-6/joint/final.ckpt"])
def test_given_boxes_get_their_masks(finished, name):
    segmenter = load(finished / name)
    image = np.random.default_rng(0).integers(0, 255, (50, 80, 3), dtype=np.uint8)
    labels = [1, segmenter.class_names[2], 1, 3, 2]
    found = segmenter.segment(image, boxes=BOXES, labels=labels)
    assert torch.equal(found.boxes, torch.tensor(BOXES))  # in their order, as they were given
    assert found.labels.tolist() == [1, 2, 1, 3, 2]
    assert ((found.scores > 0) & (found.scores < 1)).all()  # how well each fits
    assert found.masks.shape == (5, 50, 80)
    for mask, (x0, y0, x1, y1) in zip(found.masks, pixel_windows(torch.tensor(BOXES), (50, 80)).tolist(), strict=True):
        outside = mask.clone()
        outside[y0:y1, x0:x1] = False
        assert not outside.any()
    assert found.semantic.shape == (50, 80)
    assert len(segmenter.segment(image, boxes=[], labels=[])) == 0

    # each by itself: the same mask, whatever else is asked for
    alone = segmenter.segment(image, boxes=BOXES[2:3], labels=[1])
    assert torch.equal(alone.masks[0], found.masks[2])


def test_options_of_a_checkpoint_are_of_its_task(finished):
    checkpoint = finished / "masks-6" / "final.ckpt"
    segmenter = load(checkpoint)
    assert segmenter.options == InstanceOptions(score_threshold=0.02, max_detections=5)
    assert load(checkpoint, options=InstanceOptions(max_detections=1)).options.max_detections == 1
    with pytest.raises(ConfigError, match=r"final\.ckpt: its task takes InstanceOptions, given: SemanticOptions"):
        load(checkpoint, options=SemanticOptions())


def test_detected_objects_obey_the_options(finished, shapes):
    path = sorted((shapes / "val").iterdir())[0]
    segmenter = load(finished / "masks-6" / "final.ckpt", options=InstanceOptions(score_threshold=0.01))
    ranked = segmenter.segment(path)
    assert torch.equal(ranked.scores, ranked.scores.sort(descending=True).values)  # by the instance score too
    segmenter.options = InstanceOptions(score_threshold=0.01, weight_by_instance_score=False)
    many = segmenter.segment(path)
    segmenter.options = InstanceOptions(score_threshold=0.01, max_detections=2, weight_by_instance_score=False)
    two = segmenter.segment(path)
    assert len(many) > len(two) == 2
    assert torch.equal(two.boxes, many.boxes[:2])
    segmenter.options = InstanceOptions(score_threshold=float(two.scores[0]), weight_by_instance_score=False)
    assert segmenter.segment(path).scores.min() >= two.scores[0]


def test_segment_command_takes_options_of_the_checkpoints_task(finished, shapes, tmp_path, capsys):
    checkpoint = str(finished / "masks-6" / "joint" / "final.ckpt")
    arguments = ["segment", str(shapes / "val"), "--checkpoint", checkpoint, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--inference-option", "max_detections=2", "--score-threshold", "0.01"]) == 0
    predicted = COCO(tmp_path / "out" / "predictions.json")
    assert len(predicted.imgs) == 6
    assert len(predicted.anns) == 12
    assert main([*arguments, "--inference-option", "max_classes=2"]) == 2
    assert "'max_classes' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "expected"), [(250, 1), (374, 1), (375, 2), (1500, 2)])
def test_a_short_stage_validates_once(steps, expected):
    records = [None] * 200
    dataset = SimpleNamespace(val=SimpleNamespace(records=records))
    data = SimpleNamespace(batch_size=16, opened=lambda: SimpleNamespace(dataset=dataset))
    assert stage_two.validations_of(steps, data) == expected


def test_demo_of_instances(tmp_path, capsys):
    lengths = ["--images", "12", "--detector-steps", "2", "--steps", "2", "--num-workers", "0", "--mask-budget", "5"]
    assert main(["demo", "--out", str(tmp_path / "demo"), *lengths]) == 0
    printed = capsys.readouterr().out
    assert printed.index("Instance segmentation") < printed.index("Semantic segmentation")
    assert (tmp_path / "demo" / "report.html").is_file()
