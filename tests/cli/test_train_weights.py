"""The initial weights of `dasnet train`: chosen by name, reported, and checked before the run folder is claimed."""

import json
from urllib.error import URLError

import pytest
import torch

from dasnet_lightning import train
from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.ssd.ssd_tiny import TinyBackbone
from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.tasks.checkpoints import read_checkpoint, without_weights
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.training.detector_stage import resolve_detector
from dasnet_lightning.training.options import build_config

CLASSES = ("background", "dog", "disc")
TINY = [
    *("--detector", "ssd_tiny", "--image-size", "64", "--detector-batch-size", "4", "--batch-size", "4"),
    *("--detector-steps", "1", "--steps", "1", "--num-workers", "0", "--accelerator", "cpu", "--precision", "32-true"),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=4, size=64)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine without connection whose torch hub folder is empty."""

    def refuse(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("dasnet_lightning.detectors.downloads.urlopen", refuse)


def resolve(tmp_path, **options):
    return resolve_detector(build_config("data", tmp_path / "run", options, "train"), CLASSES)


def test_the_default_never_starts_from_random_weights_silently(shapes, tmp_path, offline, capsys):
    assert main(["train", str(shapes), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "vgg16_features-amdegroot-88682ab5.pth: torchvision cannot download this file of weights" in error
    assert "--weights none" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_wrong_file_is_refused_before_the_folder_is_claimed(shapes, tmp_path, capsys):
    torch.save({"a": torch.zeros(1)}, tmp_path / "wrong.pth")
    state = TinyBackbone().state_dict()
    torch.save(state, tmp_path / "right.pth")
    arguments = ["train", str(shapes), "--out", str(tmp_path / "run"), *TINY]
    assert main([*arguments, "--weights", str(tmp_path / "wrong.pth")]) == 2
    assert "wrong.pth: does not fit, expected the backbone of an ssd_tiny" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--weights", str(tmp_path / "right.pth")]) == 0
    assert f"detector 'ssd_tiny' starts from {tmp_path / 'right.pth'}" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["weights"] == str(tmp_path / "right.pth")
    (tmp_path / "right.pth").unlink()  # a complete stage one does not need the file any more
    assert main([*arguments, "--weights", str(tmp_path / "right.pth")]) == 0
    saved = read_checkpoint(tmp_path / "run" / "detector" / "final.ckpt")["hyper_parameters"]["detector_options"]
    assert without_weights(saved) == {"image_size": 64, "backbone_weights": None}


def test_a_random_start_says_so(tmp_path):
    note = resolve(tmp_path, detector="ssd_tiny").weights_note
    assert note.endswith("starts from random weights: no weights are published for it")


def test_class_rows_are_reported(tmp_path, monkeypatch):
    source = build_detector("ssd300_mobilenet_v2", 91).state_dict()
    monkeypatch.setattr(
        "dasnet_lightning.detectors.ssd.ssd300_mobilenet_v2.load_state", lambda *_: {"trunk.": torch.zeros(1)}
    )
    monkeypatch.setattr("dasnet_lightning.detectors.ssd.ssd300_mobilenet_v2.coco_state", lambda _: source)
    resolved = resolve(tmp_path, detector="ssd300_mobilenet_v2", weights="coco.pth")
    name, options, size, reported = resolved[:4]
    assert resolved.starts_trained, "trained predictors are fine-tuned at a low rate"
    assert (name, options, size) == ("ssd300_mobilenet_v2", {"weights": "coco.pth"}, (300, 300))
    note = "starts from coco.pth and takes over COCO's rows of dog; fresh: disc"
    assert note in reported
    task = DetectionTask(len(CLASSES), CLASSES, detector=name, detector_options=options)  # as from a YAML file
    assert note in task.detector.weights_note
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert without_weights(task.hparams["detector_options"]) == {"backbone_weights": None, **pixels}


def test_the_expert_option_still_works(tmp_path):
    torch.save(TinyBackbone().state_dict(), tmp_path / "tiny.pth")
    options = resolve(tmp_path, detector="ssd_tiny", backbone_weights=str(tmp_path / "tiny.pth")).options
    assert options == {"backbone_weights": str(tmp_path / "tiny.pth")}
    with pytest.raises(ConfigError, match=r"weights is 'none' and backbone_weights is 'x\.pth'"):
        resolve(tmp_path, detector="ssd_tiny", backbone_weights="x.pth", weights="none")


def test_python_takes_the_same_option(shapes, tmp_path, offline):
    with pytest.raises(CheckpointError, match=r"ssdlite320_mobilenet_v3_large_coco-a79551df\.pth"):
        train(shapes, tmp_path / "run", detector="ssdlite320_mobilenet_v3_large", weights="coco")
    assert not (tmp_path / "run").exists()
