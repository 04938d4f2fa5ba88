"""A run folder of version 0.1.0, made before the library was rearranged: its checkpoints load and its run is recognized.

The weights were thinned out to keep the archive small; `expected.json` holds what 0.1.0 itself answered with them.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dasnet_lightning import load
from dasnet_lightning.cli.main import main

ARCHIVE = Path(__file__).parent / "assets" / "run_0.1.0.tar.xz"
TINY = [
    *("--detector", "ssd_tiny", "--image-size", "64", "--detector-batch-size", "4", "--batch-size", "4"),
    *("--detector-steps", "300", "--steps", "60", "--num-workers", "0", "--accelerator", "cpu"),
    *("--precision", "32-true", "--mask-budget", "6"),
]


@pytest.fixture(scope="module")
def old_runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_an_old_checkpoint_answers_as_it_did(old_runs, task):
    expected = json.loads((old_runs / "expected.json").read_text())[task]
    segmenter = load(old_runs / task / "masks-6" / "final.ckpt")
    image = old_runs / "shapes" / "val" / "000002.jpg"
    given = segmenter.segment(image, boxes=[[4, 4, 40, 40], [20, 10, 60, 62]], labels=[1, 2])
    detected = segmenter.segment(image)
    assert list(segmenter.class_names) == expected["class_names"]
    assert [int(mask.sum()) for mask in given.masks] == pytest.approx(expected["given_mask_pixels"], abs=2)
    assert np.bincount(np.asarray(given.semantic).ravel()).tolist() == pytest.approx(expected["given_semantic"], abs=4)
    assert len(detected.boxes) == expected["detected"]
    assert [float(score) for score in detected.scores[:5]] == pytest.approx(expected["scores"], abs=2e-4)


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_an_old_run_folder_is_recognized(old_runs, task, monkeypatch, capsys):
    monkeypatch.chdir(old_runs)
    before = json.loads((old_runs / task / "results.json").read_text())
    assert main(["train", "shapes", "--out", task, "--task", task, *TINY]) == 0
    after = json.loads((old_runs / task / "results.json").read_text())
    assert "done before" in capsys.readouterr().err
    assert [item["metrics"] for item in after["budgets"]] == [item["metrics"] for item in before["budgets"]]
    assert (old_runs / task / "report.html").is_file()
