"""`evaluate` and `dasnet test DATA --checkpoint`: splits, classes, floors, files, and the numbers of training."""

import csv
import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from data_builders import VocObject, annotation, coco_content, make_coco, make_voc, square_polygon

import dasnet_lightning
from dasnet_lightning.callbacks import AtomicCheckpointIO
from dasnet_lightning.cli.main import main
from dasnet_lightning.cli.test import is_evaluation
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.errors import ConfigError, DataError
from dasnet_lightning.tasks.config import NetworkConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.semantic import SemanticTask

CLASSES = ("background", "cat", "dog", "owl")
QUICK = {"num_workers": 0, "accelerator": "cpu", "precision": "32-true"}


def save(folder: Path, kind: str, class_names: tuple[str, ...] = CLASSES) -> Path:
    """A checkpoint of an untrained network."""
    torch.manual_seed(0)
    if kind == "detection":
        task = DetectionTask(len(class_names), class_names, detector="ssd_tiny")
    else:
        network = NetworkConfig("ssd_tiny", {"image_size": 64})
        task = {"semantic": SemanticTask, "instance": InstanceTask}[kind](len(class_names), class_names, (), network)
    trainer = L.Trainer(accelerator="cpu", logger=False, plugins=[AtomicCheckpointIO()], enable_progress_bar=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(folder / f"{kind}.ckpt")
    return folder / f"{kind}.ckpt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoint"), "instance")


def roboflow(root: Path, **images: int) -> Path:
    for first, (split, count) in enumerate(images.items()):
        rows = [annotation(n, image=n, segmentation=square_polygon()) for n in range(1, count + 1)]
        content = coco_content(rows, num_images=count)
        for image in content["images"]:
            image["file_name"] = f"p{first}_{image['file_name']}"
        make_coco(root, content, f"{split}/_annotations.coco.json", split)
    return root


@pytest.mark.parametrize(
    ("images", "split", "expected"),
    [
        ({"train": 4, "valid": 3, "test": 2}, None, ("test", 2)),
        ({"train": 4, "valid": 3, "test": 2}, "val", ("val", 3)),
        ({"train": 4, "valid": 3}, None, ("val", 3)),
    ],
)
def test_the_test_split_comes_first(
    tmp_path: Path, checkpoint: Path, images: dict[str, int], split: str, expected: tuple[str, int]
) -> None:
    result = dasnet_lightning.evaluate(roboflow(tmp_path, **images), checkpoint, split=split, **QUICK)
    assert (result.split, result.images) == expected
    assert result.labels["all"]["evaluated"] == expected[1]


def test_a_folder_or_a_file_without_splits_is_measured_whole(tmp_path: Path, checkpoint: Path) -> None:
    roboflow(tmp_path, test=2)
    for path in (tmp_path / "test", tmp_path / "test" / "_annotations.coco.json"):
        result = dasnet_lightning.evaluate(path, checkpoint, **QUICK)
        assert (result.split, result.images) == ("all", 2)
    with pytest.raises(ConfigError, match="has no test split, use --split val"):
        dasnet_lightning.evaluate(tmp_path / "test", checkpoint, split="test", **QUICK)
    roboflow(tmp_path / "three", train=2, valid=1, test=1)
    with pytest.raises(ConfigError, match="its files name splits"):
        dasnet_lightning.evaluate(tmp_path / "three", checkpoint, split="all", **QUICK)


def test_the_numbers_are_those_of_a_validation(tmp_path: Path, checkpoint: Path) -> None:
    root = roboflow(tmp_path, train=4, valid=3)
    task = InstanceTask.load_from_checkpoint(checkpoint)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(task, MixedSupervisionDataModule(str(root), image_size=task.model.detector.image_size))
    result = dasnet_lightning.evaluate(root, checkpoint, **QUICK)
    for name, value in task.metrics.items():
        if name.removeprefix("val/").startswith(("rectangle", "ellipse")):
            continue
        assert result.metrics[name.removeprefix("val/")] == pytest.approx(value, abs=1e-9, nan_ok=True), name
    assert {"box_ap", "box_ap50", "box_ap75"} <= result.metrics.keys()


def test_floors_are_those_of_the_shapes(tmp_path: Path, checkpoint: Path) -> None:
    """Objects that are their boxes: the rectangle reaches 1, the ellipse pi/4 of each object."""
    rows = [annotation(1, bbox=[4, 5, 20, 20], segmentation=[[4, 5, 24, 5, 24, 25, 4, 25]])]
    file = make_coco(tmp_path, coco_content(rows, num_images=1), "labels.json", "images")
    result = dasnet_lightning.evaluate(file, checkpoint, **QUICK)
    rectangle, ellipse = result.floors["rectangle"], result.floors["ellipse"]
    assert rectangle["iou_ground_truth_boxes/cat"] == rectangle["apr75_area_ground_truth_boxes"] == 1
    assert ellipse["iou_ground_truth_boxes/cat"] == pytest.approx(np.pi / 4, abs=0.02)
    assert ellipse["coco_ap75_ground_truth_boxes"] == pytest.approx(1)
    assert ellipse["coco_ap_ground_truth_boxes"] == pytest.approx(0.6)  # IoU 0.79: right up to 0.75
    assert any("does not name 1 classes of the checkpoint (owl)" in note for note in result.notes)


def test_classes_are_matched_by_name_and_others_named(tmp_path: Path, checkpoint: Path) -> None:
    objects = {"i0": [VocObject("dog", (6, 6, 25, 25))], "i1": [VocObject("yak", (6, 6, 25, 25))]}
    make_voc(tmp_path, objects, list(objects), {"train": ["i0"], "val": ["i0", "i1"]})
    result = dasnet_lightning.evaluate(tmp_path, checkpoint, **QUICK)
    assert result.floors["rectangle"]["iou_ground_truth_boxes/dog"] == 1
    assert any("(yak), their 1 labels are left out and count as background" in note for note in result.notes)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("i1\n")
    with pytest.raises(DataError, match="has none of the classes of the checkpoint"):
        dasnet_lightning.evaluate(tmp_path, checkpoint, **QUICK)


def test_training_images_are_counted(tmp_path: Path) -> None:
    from dasnet_lightning.data.fingerprint import fingerprint
    from dasnet_lightning.data.sources.open import open_dataset

    root = roboflow(tmp_path / "data", all=10)
    run = tmp_path / "run"
    path = save(run / "masks-all", "instance")
    prints = fingerprint(open_dataset(root / "all"))
    (run / "run.json").write_text(json.dumps({"data": str(root / "all"), "fingerprint": prints}))
    result = dasnet_lightning.evaluate(root / "all", path, **QUICK)
    assert (result.split, result.images) == ("val", 2)  # not the images that the run has trained on
    assert "names no validation split, 2 images chosen by the hash of their ids" in result.notes[0]
    result = dasnet_lightning.evaluate(root / "all", path, split="all", **QUICK)
    assert "8 of the 10 images were training images of this checkpoint" in result.notes


def test_unusable_labels_of_the_test_split_are_refused_unless_dropped(tmp_path: Path, checkpoint: Path) -> None:
    root = roboflow(tmp_path, train=2, valid=1, test=1)
    file = root / "test" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"].append(annotation(9, image=1, bbox=[3, 3, 0, 5]))
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="zero width"):
        dasnet_lightning.evaluate(root, checkpoint, **QUICK)
    result = dasnet_lightning.evaluate(root, checkpoint, fix="drop", **QUICK)
    assert (result.labels["all"]["boxes"], result.labels["all"]["refused"]) == (2, 1)


@pytest.mark.parametrize("kind", ["semantic", "detection"])
def test_other_stages_are_measured_too(tmp_path: Path, kind: str) -> None:
    result = dasnet_lightning.evaluate(roboflow(tmp_path, train=2, valid=1), save(tmp_path, kind), **QUICK)
    assert result.task == kind
    assert "box_ap50" in result.metrics
    assert bool(result.floors) == (kind == "semantic")


def test_the_command_prints_tables_and_writes_files(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = roboflow(tmp_path, train=2, valid=1, test=2), tmp_path / "out"
    arguments = ["test", str(root), "--checkpoint", str(checkpoint), "--num-workers", "0", "--accelerator", "cpu"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("2 images (test)", "Detection", "Instance segmentation", "Semantic segmentation", "filled ellipse"):
        assert words in printed
    document = json.loads((out / "results.json").read_text())
    assert document["labels"]["all"]["boxes"] == 2
    rows = list(csv.DictReader((out / "labels.csv").read_text().splitlines()))
    assert [row["mask"] for row in rows] == ["evaluated", "evaluated"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"].keys() == document["metrics"].keys()


def test_masks_that_cannot_be_measured_are_shown_as_gaps(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_coco(tmp_path, coco_content([annotation(1)], num_images=1), "labels.json", "images")
    assert main(["test", str(tmp_path / "labels.json"), f"--checkpoint={checkpoint}", "--num-workers=0"]) == 0
    printed = capsys.readouterr().out
    assert "-: none of the 1 evaluated images has a mask that can be used" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data", "--checkpoint", "a.ckpt"], True),
        (["--checkpoint=a.ckpt", "data"], True),
        (["data"], True),
        (["--help"], True),
        (["--config", "a.yaml", "--help"], False),
        (["--config=a.yaml", "--ckpt_path", "a.ckpt"], False),
        (["--model", "SemanticTask", "--data.data_root", "data"], False),
    ],
)
def test_lightnings_test_command_is_told_apart(arguments: list[str], expected: bool) -> None:
    assert is_evaluation(arguments) is expected


def test_the_help_names_both_uses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--help"]) == 0
    assert "dasnet test --config FILE" in " ".join(capsys.readouterr().out.split())
    assert main(["test", "data"]) == 2
    assert "--checkpoint" in capsys.readouterr().err
