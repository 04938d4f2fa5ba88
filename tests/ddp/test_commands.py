"""`dasnet train` and `dasnet fit` over two processes: everything is written and said once, and an error ends both."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from forks import run
from trainings import command, start_script

from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.training.config import TrainerSettings
from dasnet_lightning.training.launch import FOLLOWED, check_strategy, end_processes

TINY = [
    *("--detector", "ssd_tiny", "--detector-option", "detections_per_image=6", "--image-size", "64"),
    *("--detector-batch-size", "2", "--batch-size", "2", "--detector-steps", "3", "--steps", "2", "--num-workers", "0"),
    *("--accelerator", "cpu", "--precision", "32-true", "--devices", "2", "--strategy", "ddp"),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=3, size=64)


def test_a_run_of_two_processes_speaks_and_writes_once(shapes, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", str(shapes), "--out", str(out), "--mask-budget", "4", "--joint-steps", "2", *TINY]
    first, second = run(2, command, arguments)
    assert (first["code"], second["code"]) == (0, 0), first["complained"] + second["complained"]
    assert first["printed"].count("mIoU, ground-truth boxes") == 1
    assert second["printed"] == ""
    assert "stage one: boxes: 2 processes x batch 2 = 4 images a step; lr 0.001 is not scaled" in first["complained"]
    assert "stage" not in second["complained"]
    results = json.loads((out / "results.json").read_text())
    assert [item["budget"] for item in results["budgets"]] == ["4", "4, joint"]
    for folder, steps in (("detector", 3), ("masks-4", 2), ("masks-4/joint", 2)):
        assert read_checkpoint(out / folder / "final.ckpt")["global_step"] == steps
        assert json.loads((out / folder / "metrics.json").read_text())
        assert [path.name for path in (out / folder / "log").iterdir()] == ["version_0"]
        assert not list((out / folder).glob("last*"))
    assert (out / "report.html").is_file()

    again = run(2, command, arguments)  # everything is done: nothing is trained, and nobody waits
    assert [answer["code"] for answer in again] == [0, 0]
    assert again[0]["complained"].count("done before") == 3


def test_what_goes_wrong_in_the_first_process_ends_all_with_one_sentence(shapes, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"seed": 77}))
    first, second = run(2, command, ["train", str(shapes), "--out", str(tmp_path / "run"), *TINY], limit=30)
    assert (first["code"], second["code"]) == (2, FOLLOWED)
    assert "holds a run with other settings (seed was 77 and is 0)" in first["complained"]
    assert second["complained"] == ""


SCRIPT = """
import sys
from pathlib import Path

import torch

from dasnet_lightning.training import launch
from dasnet_lightning.training.config import TrainerSettings
from dasnet_lightning.distributed import is_rank_zero, rank, sum_over_ranks

launch.GRACE = 1.0
with launch.processes(TrainerSettings("cpu", 2, "ddp")):
    total = sum_over_ranks(torch.tensor(rank() + 1))
    Path(sys.argv[1], f"{rank()}.txt").write_text(str(int(total)))
    if is_rank_zero():
        raise ArithmeticError("of the first process alone")
    sum_over_ranks(total)  # waits for the first
"""


def test_a_run_starts_its_processes_and_none_outlives_an_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (answer,) = run(1, start_script, str(script), [str(tmp_path)], limit=200)
    assert answer == {"error": "of the first process alone", "alive": 0}
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {"0.txt": "3", "1.txt": "3"}


def test_fit_runs_over_two_processes(shapes, tmp_path):
    arguments = [
        *(
            "fit",
            "--model",
            "SemanticTask",
            "--model.init_args.network.detector",
            "ssd_tiny",
            "--data.data_root",
            str(shapes),
        ),
        *(
            "--data.image_size",
            "64",
            "--data.batch_size",
            "2",
            "--data.supervision",
            "masks",
            "--data.num_workers",
            "0",
        ),
        *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.devices", "2"),
        *("--trainer.strategy", "ddp", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
        *("--trainer.default_root_dir", str(tmp_path), "--trainer.limit_val_batches", "1"),
    ]
    first, second = run(2, command, arguments)
    assert (first["code"], second["code"]) == (0, 0)
    assert "training: 2 processes x batch 2 = 4 images a step; lr 0.01 is not scaled" in first["complained"]
    assert len(list(tmp_path.rglob("epoch*.ckpt"))) == 1
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1


def test_strategies_of_one_stage_are_refused_with_a_hint(monkeypatch):
    with pytest.raises(ConfigError, match="strategy 'ddp_fork': a run starts the processes"):
        check_strategy(TrainerSettings(devices=2, strategy="ddp_fork"))
    monkeypatch.setattr("dasnet_lightning.training.launch._IS_INTERACTIVE", True)
    with pytest.raises(ConfigError, match=r"2 devices: a notebook .* `!dasnet train"):
        check_strategy(TrainerSettings(devices=2, strategy="ddp"))


def test_processes_that_do_not_end_are_killed():
    started = time.monotonic()
    others = [
        subprocess.Popen(["sh", "-c", line]) for line in ("exec sleep 60", "exit 0", "exit 1", f"exit {FOLLOWED}")
    ]
    assert end_processes(others, grace=0.3) == [3]
    assert all(process.returncode is not None for process in others)
    assert time.monotonic() - started < 20
