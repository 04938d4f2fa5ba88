import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from dasnet_lightning import train
from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.errors import CheckpointError, ConfigError, DataError
from dasnet_lightning.inference.segmenter import load
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.training.config import RunConfig, TrainerSettings
from dasnet_lightning.training.options import TrainOptions

TINY = [
    *(
        "--task",
        "semantic",
        "--detector",
        "ssd_tiny",
        "--image-size",
        "64",
        "--detector-batch-size",
        "4",
        "--batch-size",
        "4",
    ),
    *("--detector-steps", "6", "--steps", "4", "--num-workers", "0", "--accelerator", "cpu", "--precision", "32-true"),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=16, num_val=6, size=64)


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert main(["train", str(shapes), "--out", str(out), "--mask-budget", "6", "all", *TINY]) == 0
    return out


def test_a_run_leaves_everything_behind(finished):
    results = json.loads((finished / "results.json").read_text())
    assert [item["budget"] for item in results["budgets"]] == ["6", "all"]
    assert results["budgets"][0]["mask_images"] == 6
    for item in results["budgets"]:
        assert 0 <= item["metrics"]["val/miou_ground_truth_boxes"] <= 1
        assert 0 <= item["metrics"]["val/miou_detected_boxes"] <= 1
    assert "val/box_ap50" in results["detection"]
    split = json.loads((finished / "masks-6" / "split.json").read_text())
    assert len(split["image_ids"]) == 6
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64") >= 3
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "mIoU, ground-truth boxes" in page
    assert not (finished / "detector" / "last.ckpt").exists()


def test_stage_two_kept_the_detector_bit_identical(finished):
    """ssd_tiny holds BatchNorm; its buffers belong to what must not move."""
    first = read_checkpoint(finished / "detector" / "final.ckpt")["state_dict"]
    second = read_checkpoint(finished / "masks-all" / "final.ckpt")["state_dict"]
    assert any("running_var" in key for key in first)
    for key, value in first.items():
        assert torch.equal(value, second["model.detector.frozen.module." + key.removeprefix("detector.")]), key


def test_starting_a_finished_run_again_trains_nothing(finished, shapes, capsys):
    before = (finished / "masks-all" / "final.ckpt").stat().st_mtime_ns
    assert main(["train", str(shapes), "--out", str(finished), "--mask-budget", "6", "all", *TINY]) == 0
    assert "done before" in capsys.readouterr().err
    assert (finished / "masks-all" / "final.ckpt").stat().st_mtime_ns == before


def test_a_run_that_lacks_only_its_end_is_measured(finished, shapes, capsys):
    """Killed after the last step, while it wrote: no step and no validation is left to run, the last but one is good."""
    stage = finished / "masks-all"
    before = json.loads((stage / "metrics.json").read_text())
    final, last, previous = (stage / f"{name}.ckpt" for name in ("final", "last", "last.previous"))
    command = ["train", str(shapes), "--out", str(finished), "--mask-budget", "6", "all", *TINY]
    final.rename(stage / "good")
    (stage / "metrics.json").unlink()
    (stage / ".last.ckpt.4194303.tmp").write_text("half")
    last.write_bytes((stage / "good").read_bytes()[:-99])
    previous.write_bytes(b"")
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "last.ckpt: truncated or damaged" in said
    assert (
        "last.previous.ckpt: not a checkpoint, it is empty (zero bytes); none is left to continue from, delete" in said
    )

    (stage / "good").rename(previous)
    assert main(command) == 0
    said = capsys.readouterr().err
    assert f"; continues from the one before, {previous}" in said
    assert json.loads((stage / "metrics.json").read_text()) == pytest.approx(before, nan_ok=True)
    assert final.is_file()
    assert not [path for path in stage.iterdir() if "last" in path.name]


def test_budgets_share_the_features_of_the_validation_images(finished, shapes, tmp_path):
    """A cache may be given to a run that began without: the same figures, and one file for each of the six images."""
    stages = [finished / "masks-6", finished / "masks-all"]
    before = [json.loads((stage / "metrics.json").read_text()) for stage in stages]
    for stage in stages:
        (stage / "metrics.json").unlink()
    cache = ["--feature-cache", str(tmp_path / "features"), "--feature-cache-gb", "0.5"]
    assert main(["train", str(shapes), "--out", str(finished), "--mask-budget", "6", "all", *TINY, *cache]) == 0
    after = [json.loads((stage / "metrics.json").read_text()) for stage in stages]
    assert all(found == pytest.approx(expected, nan_ok=True) for found, expected in zip(after, before, strict=True))
    assert len(list((tmp_path / "features").iterdir())) == 6
    assert "feature_cache" not in json.loads((finished / "run.json").read_text())


def test_a_feature_cache_that_cannot_be_is_refused_before_training(shapes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["train", str(shapes), "--out", str(tmp_path / "run"), *TINY]
    assert main([*arguments, "--feature-cache", str(tmp_path / "file")]) == 2
    assert "file: cannot create this folder" in capsys.readouterr().err
    assert main([*arguments, "--feature-cache", str(tmp_path / "new"), "--feature-cache-gb", "0"]) == 2
    assert "feature_cache_gb is 0.0, expected a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_other_settings_in_the_same_folder_are_refused(finished, shapes, capsys):
    assert main(["train", str(shapes), "--out", str(finished), "--mask-budget", "5", *TINY]) == 2
    assert "mask_budgets was ['6', 'all'] and is ['5']" in capsys.readouterr().err


def test_a_trained_detector_is_taken_over(finished, shapes, tmp_path):
    out = tmp_path / "second"
    detector = str(finished / "detector" / "final.ckpt")
    arguments = ["--out", str(out), "--mask_budget=3", "--detector-checkpoint", detector, *TINY]
    assert main(["train", str(shapes), *arguments]) == 0
    assert not (out / "detector" / "final.ckpt").exists()
    results = json.loads((out / "results.json").read_text())
    assert results["detection"]["val/box_ap50"] == pytest.approx(
        json.loads((finished / "results.json").read_text())["detection"]["val/box_ap50"]
    )


def test_masks_missing_on_most_annotations_are_all_accounted_for(shapes, tmp_path):
    """A COCO file in which 80 % of the annotations have no segmentation trains, and every label has its row."""
    root = tmp_path / "mixed"
    write_synthetic(root, num_train=16, num_val=6, size=64)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for number, annotation in enumerate(content["annotations"]):
        if number % 5:
            del annotation["segmentation"]
    path.write_text(json.dumps(content))
    out = tmp_path / "run"
    assert main(["train", str(root), "--out", str(out), *TINY]) == 0
    with (out / "masks-all" / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    total = len(content["annotations"])
    uses = Counter(row["mask"] for row in rows)
    assert len(rows) == total
    assert uses == {"trained": -(-total // 5), "absent": total - -(-total // 5)}
    assert {row["box"] for row in rows} == {"trained"}
    results = json.loads((out / "results.json").read_text())
    assert results["budgets"][0]["mask_objects"] == uses["trained"]


def start(shapes: Path, out: Path) -> subprocess.Popen:
    longer = [*TINY, "--steps", "60"]
    command = [sys.executable, "-m", "dasnet_lightning.cli.main", "train", str(shapes), "--out", str(out), *longer]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_when(process: subprocess.Popen, path: Path) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_killed_run_continues_to_a_complete_result(shapes, tmp_path):
    """Killed in stage two; kills at any moment are in test_faults.py."""
    out = tmp_path / "run"
    kill_when(start(shapes, out), out / "masks-all" / "last.ckpt")
    assert read_checkpoint(out / "masks-all" / "last.ckpt")["global_step"] < 60
    final = (out / "detector" / "final.ckpt").read_bytes()
    process = start(shapes, out)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    assert "continues from" in errors
    assert (out / "detector" / "final.ckpt").read_bytes() == final
    assert read_checkpoint(out / "masks-all" / "final.ckpt")["global_step"] == 60
    assert (out / "report.html").is_file()
    results = json.loads((out / "results.json").read_text())
    assert results["budgets"]
    assert len(json.loads((out / "run.json").read_text())["provenance"]) == 2  # one for each start


def test_the_checkpoint_segments_images(finished, shapes):
    segmenter = load(finished / "masks-all" / "final.ckpt")
    path = next((shapes / "val").iterdir())
    found = segmenter.segment(path)
    assert found.semantic.shape == found.image.shape[:2]
    assert found.class_names[0] == "background"
    assert len(found.class_names) == 7

    array = np.zeros((50, 80, 3), dtype=np.uint8)
    given = segmenter.segment(array, boxes=[[5, 5, 40, 30], [60, 10, 80, 50]], labels=[1, found.class_names[2]])
    assert given.labels.tolist() == [1, 2]
    assert torch.allclose(given.boxes, torch.tensor([[5.0, 5, 40, 30], [60, 10, 80, 50]]), atol=1e-4)
    assert given.masks.shape == (2, 50, 80)
    assert not given.masks[0, :, 40:].any()
    json.dumps(given.to_coco(1))
    assert given.draw().size[0] >= 80


def test_wrong_questions_get_one_sentence(finished):
    segmenter = load(finished / "masks-all" / "final.ckpt")
    image = np.zeros((50, 80, 3), dtype=np.uint8)
    with pytest.raises(ConfigError, match="1 boxes need 1 labels, given: none"):
        segmenter.segment(image, boxes=[[0, 0, 10, 10]])
    with pytest.raises(ConfigError, match="no class 'zebra'"):
        segmenter.segment(image, boxes=[[0, 0, 10, 10]], labels=["zebra"])
    with pytest.raises(ConfigError, match="is not x0 < x1"):
        segmenter.segment(image, boxes=[[10, 0, 0, 10]], labels=[1])
    with pytest.raises(DataError, match="values from 7 to 7, expected 0 to 1 for float32"):
        segmenter.segment(np.full((50, 80, 3), 7, np.float32))
    with pytest.raises(CheckpointError, match="holds a detector without a decoder"):
        load(finished / "detector" / "final.ckpt")


def test_segment_command_with_a_real_checkpoint(finished, shapes, tmp_path):
    checkpoint = str(finished / "masks-all" / "final.ckpt")
    assert (
        main(["segment", str(shapes / "val"), "--checkpoint", checkpoint, "--out", str(tmp_path / "out"), "--draw"])
        == 0
    )
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    predicted = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(predicted["images"]) == 6
    truth = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    assert [row["id"] for row in predicted["categories"]] == [row["id"] for row in truth["categories"]]


def test_images_are_segmented_again_from_cached_features(finished, shapes, tmp_path, capsys):
    """Another decoder on the same detector finds them too, and what is answered stays the same."""
    found = []
    for turn, (budget, cache) in enumerate([("all", False), ("6", True), ("all", True)]):
        checkpoint, out = str(finished / f"masks-{budget}" / "final.ckpt"), str(tmp_path / f"out{turn}")
        option = ["--feature-cache", str(tmp_path / "features")] if cache else []
        assert main(["segment", str(shapes / "val"), "--checkpoint", checkpoint, "--out", out, *option]) == 0
        found.append(json.loads(Path(out, "predictions.json").read_text())["annotations"])
    printed = capsys.readouterr().out
    assert "features of 0 images taken from" in printed
    assert "features of 6 images taken from" in printed
    assert found[2] == found[0]


def test_demo_walks_the_users_road(tmp_path, capsys):
    lengths = ["--images", "12", "--detector-steps", "2", "--steps", "2", "--num-workers", "0"]
    assert main(["demo", "--task", "semantic", "--out", str(tmp_path / "demo"), *lengths]) == 0
    printed = capsys.readouterr().out
    assert "mIoU, ground-truth boxes" in printed
    assert "5/class" in printed
    assert (tmp_path / "demo" / "report.html").is_file()


def test_python_and_the_command_line_take_the_same_options_and_do_the_same(finished, shapes, capsys):
    result = train(shapes, finished, mask_budgets=["6", "all"], **options_of(TINY))
    assert "stage one: boxes: done before" in capsys.readouterr().err
    saved = json.loads((finished / "results.json").read_text())
    assert [item.metrics for item in result.budgets] == [item["metrics"] for item in saved["budgets"]]
    assert result.folder == finished
    assert "dasnet_lightning.train(" in (finished / "report.html").read_text()


def options_of(arguments: list[str]) -> dict[str, Any]:
    """The keyword arguments of `train` that mean what these command-line arguments mean."""
    names = [name.removeprefix("--").replace("-", "_") for name in arguments[::2]]
    return {name: int(value) if value.isdigit() else value for name, value in zip(names, arguments[1::2], strict=True)}


def test_train_refuses_unknown_options_and_wrong_values(shapes, tmp_path):
    with pytest.raises(ConfigError, match=r"train: 'stepps' is unknown, did you mean 'steps'\?"):
        train(shapes, tmp_path / "run", stepps=3)
    with pytest.raises(ConfigError, match=r"train steps='many': expected a whole number"):
        train(shapes, tmp_path / "run", steps="many")
    with pytest.raises(ConfigError, match=r"train logger='paper': expected 'csv' or 'wandb' or 'tensorboard'"):
        train(shapes, tmp_path / "run", logger="paper")
    assert not (tmp_path / "run").exists()


def test_the_keyword_arguments_of_train_are_all_options():
    options = get_type_hints(RunConfig) | get_type_hints(TrainerSettings)
    for name in ("data", "out", "trainer"):
        del options[name]
    assert get_type_hints(TrainOptions) == options
