"""One W&B run for each training: under an agent, after a kill, without data; its pictures and its files."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.errors import ConfigError, DataError
from dasnet_lightning.training.config import RunConfig, TrainerSettings
from dasnet_lightning.training.loggers import build_loggers
from dasnet_lightning.training.wandb_files import BLOCK, RunFile, find_run_files, join_run_files, read_run_file
from dasnet_lightning.training.wandb_pictures import AnnotatedImage, Overlay, allot_ids, mask_layers, to_wandb
from dasnet_lightning.training.wandb_run import TrackedRun, open_run, wandb_run
from dasnet_lightning.training.wandb_sweep import read_command, read_sweep

TINY = {
    "task": "semantic",
    "detector": "ssd_tiny",
    "image_size": 64,
    "detector_batch_size": 4,
    "batch_size": 4,
    "detector_steps": 10,
    "steps": 10,
    "num_workers": 0,
    "accelerator": "cpu",
    "precision": "32-true",
    "logger": "wandb",
}
AGENT = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_PROJECT")


def arguments(**options) -> list[str]:
    return [f"--{name}={value}" for name, value in (TINY | options).items()]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=16, num_val=4, size=64)


@pytest.fixture
def offline(monkeypatch):
    """W&B without a server, and without what another test set: it reads the environment once for each process."""
    for name in (*AGENT, "WANDB_NAME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("dasnet_lightning.training.run.finish", lambda *arguments: None)  # pages, of no interest here
    wandb.teardown()
    yield
    wandb.teardown()


def read_runs(folder: Path) -> dict[str, RunFile]:
    return join_run_files(read_run_file(path) for path in find_run_files(folder))


def stage_steps(run: RunFile, prefix: str, name: str) -> list[int]:
    return [row[f"{prefix}/step"] for row in run.rows if f"{prefix}/{name}" in row]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # wandb 0.31 leaves its sweep file open
def test_an_agent_gets_one_run_for_each_point_with_both_stages(shapes, tmp_path, monkeypatch, offline):
    """What `wandb agent` does for each point: WANDB_RUN_ID, a file with the parameters, and the command."""
    values = {"mask_budget": ["2/class", "all"], "split_seed": [0, 3]}
    sweep = {
        "program": "dasnet",
        "method": "grid",
        "parameters": {name: {"values": choices} for name, choices in values.items()},
        "command": ["dasnet", "train", str(shapes), "${args}", *arguments()],
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))  # JSON is YAML
    monkeypatch.chdir(tmp_path)
    points = read_sweep("sweep.yaml")
    for number, point in enumerate(points):
        given = {name: {"value": value} for name, value in point.items()}
        Path("point.yaml").write_text(json.dumps({"wandb_version": 1, **given}))
        for name, value in zip(AGENT, (f"run{number}", "sweep1", "point.yaml", "curves"), strict=True):
            monkeypatch.setenv(name, value)
        wandb.teardown()
        command = create_sweep_command(list(sweep["command"]))
        place = command.index("${args}")
        command[place : place + 1] = create_sweep_command_args({"args": given})["args"]
        assert command == read_command("sweep.yaml", point)
        assert main(command[1:]) == 0

    runs = read_runs(tmp_path)
    assert sorted(runs) == ["run0", "run1", "run2", "run3"]
    assert len(find_run_files(tmp_path)) == 4
    for (identity, run), point in zip(sorted(runs.items()), points, strict=True):
        folder = tmp_path / "runs" / "sweep-sweep1" / identity
        assert run.sweep_id == "sweep1"
        assert run.config["mask_budget"] == point["mask_budget"]
        assert run.config["split_seed"] == point["split_seed"]
        assert run.config["train_images"] == 16
        prefix = f"masks-{point['mask_budget'].replace('/', '-per-')}"
        for stage in ("detector", prefix):
            assert stage_steps(run, stage, "train/loss") == [9]
            assert run.axes[f"{stage}/*"] == f"{stage}/step"
        assert stage_steps(run, "detector", "val/box_ap50")
        (result,) = [row for row in run.rows if "mask_objects" in row]
        saved = json.loads((folder / "results.json").read_text())["budgets"][0]
        assert result["budget"] == point["mask_budget"]
        assert result["mask_objects"] == saved["mask_objects"]
        assert result["val/miou_ground_truth_boxes"] == saved["metrics"]["val/miou_ground_truth_boxes"]
        split, labels = run.artifacts
        assert (split["type"], labels["type"]) == ("split", "label-audit")
        assert f"{prefix.removeprefix('masks-')}-seed-{point['split_seed']}" in split["aliases"]
        check_pictures(run, prefix, find_run_files(folder)[0].parent / "files")


def check_pictures(run: RunFile, prefix: str, files: Path) -> None:
    (row,) = [row for row in run.rows if f"{prefix}/pictures" in row]
    shown = row[f"{prefix}/pictures"]
    assert shown["count"] == 4
    for masks, boxes in zip(shown["all_masks"], shown["all_boxes"], strict=True):
        assert set(boxes) == {"predictions", "ground truth"}
        layers = [value for name, value in masks.items() if name.startswith("ground truth")]
        truth = [np.unique(np.asarray(Image.open(files / layer["path"]))).tolist() for layer in layers]
        data = json.loads((files / boxes["ground truth"]["path"]).read_text())["box_data"]
        assert {item["class_id"] for item in data} == set().union(*truth) - {0}


@pytest.mark.slow
def test_a_killed_run_goes_on_as_one_run_with_one_history(shapes, tmp_path, monkeypatch, offline):
    """Killed after rows that its last checkpoint does not cover; W&B had not yet written them into its file."""
    out = tmp_path / "run"
    options = arguments(task="instance", steps=40, checkpoint_every=25, out=out, mask_budget=6)
    command = [sys.executable, "-m", "dasnet_lightning", "train", str(shapes), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    journal = out / "wandb.jsonl"
    while not journal.is_file() or '"masks-6/step": 29' not in journal.read_text():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    identity = json.loads((out / "wandb.json").read_text())["id"]
    before = read_runs(out).get(identity, RunFile())
    assert not [row for row in before.rows if row.get("masks-6/step") == 39]
    assert main(command[3:]) == 0

    assert len(find_run_files(out)) == 2
    (run,) = [run for name, run in read_runs(out).items() if name]
    assert run.run_id == identity == json.loads((out / "wandb.json").read_text())["id"]
    assert stage_steps(run, "detector", "train/loss") == [9]
    assert stage_steps(run, "masks-6", "train/loss") == [9, 19, 29, 39]
    assert len(stage_steps(run, "detector", "val/box_ap50")) == len(set(stage_steps(run, "detector", "val/box_ap50")))
    assert [row["_step"] for row in run.rows] == list(range(len(run.rows)))
    check_pictures(run, "masks-6", find_run_files(out)[1].parent / "files")


def test_bad_data_opens_no_run(shapes, tmp_path, offline, capsys):
    out = tmp_path / "run"
    assert main(["train", str(shapes), *arguments(out=out, mask_budget=999)]) == 2
    assert "999" in capsys.readouterr().err
    assert not (out / "wandb.json").exists()
    assert not find_run_files(tmp_path)


@pytest.fixture
def dataset():
    split = SimpleNamespace(records=(1, 2), class_names=("background", "cat"))
    return SimpleNamespace(train=split, val=split)


def config_of(folder: Path) -> RunConfig:
    return RunConfig("data", out=str(folder), trainer=TrainerSettings(logger="wandb"))


def test_the_id_is_kept_before_w_and_b_hears_of_it(tmp_path, dataset, offline, monkeypatch):
    asked = []

    def refuse(**settings):
        asked.append((settings["id"], json.loads((tmp_path / "wandb.json").read_text())["id"], settings["resume"]))
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    for _ in range(2):
        with (
            pytest.raises(ConfigError, match=r"no run can be opened.*WANDB_MODE=offline"),
            wandb_run(config_of(tmp_path), dataset),
        ):
            raise AssertionError("the body ran")
    assert asked[0] == asked[1]
    assert asked[0][0] == asked[0][1]
    assert asked[0][2] == "allow"


def test_other_ranks_open_no_run_and_log_to_csv_alone(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr("dasnet_lightning.training.wandb_run.run_on_rank_zero", lambda function: None)
    monkeypatch.setattr("dasnet_lightning.training.wandb_run.is_rank_zero", lambda: False)
    config = config_of(tmp_path)
    with wandb_run(config, dataset):
        assert open_run() is None
        (logger,) = build_loggers(tmp_path / "detector", config.trainer)
        assert isinstance(logger, CSVLogger)


class FakeRun:
    """A run that a server has up to `step`."""

    def __init__(self, identity: str = "abc", step: int = 0) -> None:
        self.id, self.step, self.resumed, self.offline = identity, step, step > 0, False
        self.sent: list[tuple[int, dict]] = []

    def define_metric(self, name: str, **options: object) -> None:
        pass

    def log(self, row: dict, step: int, commit: bool) -> None:
        self.sent.append((step, row))


def log_ten(run: FakeRun, folder: Path) -> TrackedRun:
    tracked = TrackedRun(run, folder)
    for step in range(10):
        tracked.log("detector", {"train/loss": 1 / (1 + step), "epoch": 0}, step)
    return tracked


def test_a_continuation_sends_what_the_server_lacks_and_nothing_twice(tmp_path):
    log_ten(FakeRun(), tmp_path)
    second = FakeRun(step=7)  # three rows never arrived
    log_ten(second, tmp_path)  # from the start again: the checkpoint was older
    assert [(step, row["detector/step"]) for step, row in second.sent] == [(7, 7), (8, 8), (9, 9)]
    third = FakeRun("other")  # an agent that asks for another run gets the whole history
    log_ten(third, tmp_path)
    assert [row["detector/step"] for _, row in third.sent] == list(range(10))


def test_lost_pictures_are_logged_anew(tmp_path):
    tracked = log_ten(FakeRun(), tmp_path)
    tracked.log("detector", {"pictures": object()}, 9, media=True)
    assert tracked.has("detector", "pictures", 9)
    kept = TrackedRun(FakeRun(step=11), tmp_path)
    assert kept.has("detector", "pictures", 9)
    lost = FakeRun(step=10)
    tracked = TrackedRun(lost, tmp_path)
    assert not tracked.has("detector", "pictures", 9)
    tracked.log("detector", {"pictures": "new"}, 9, media=True)
    assert lost.sent == [(10, {"detector/pictures": "new", "detector/step": 9})]


def test_a_row_that_adds_values_to_a_step_names_the_step_again(tmp_path):
    run = FakeRun()
    tracked = TrackedRun(run, tmp_path)
    tracked.log("detector", {"train/loss": 1.0, "epoch": 0}, 9)
    tracked.log("detector", {"val/box_ap": 0.5, "epoch": 0}, 9)
    tracked.log("detector", {"train/loss": 1.0, "epoch": 0}, 9)
    assert [row for _, row in run.sent] == [
        {"detector/train/loss": 1.0, "detector/epoch": 0, "detector/step": 9},
        {"detector/val/box_ap": 0.5, "detector/step": 9},
    ]


def test_files_are_read_over_the_borders_of_blocks_and_up_to_their_damage(tmp_path, offline):
    with wandb.init(dir=tmp_path, id="long", project="p", config={"lr": 0.1, "nested": {"a": [1, 2]}}) as run:
        for step in range(300):
            run.log({"a/step": step, "text": "x" * (step * 5 % 700)})
        run.log({"large": "y" * (3 * BLOCK)})
    (path,) = find_run_files(tmp_path, "long")
    assert path.stat().st_size > 4 * BLOCK
    found = read_run_file(path)
    assert found.run_id == "long"
    assert found.config == {"lr": 0.1, "nested": {"a": [1, 2]}}
    assert [row["a/step"] for row in found.rows[:-1]] == list(range(300))
    assert found.rows[-1]["large"] == "y" * (3 * BLOCK)
    content = bytearray(path.read_bytes())
    content[BLOCK + 5000] ^= 1
    path.write_bytes(content)
    shorter = read_run_file(path).rows
    assert 0 < len(shorter) < 300
    assert shorter == found.rows[: len(shorter)]
    path.write_text("not W&B's")
    with pytest.raises(DataError, match=r"expected a \.wandb file"):
        read_run_file(path)


def rectangles(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    masks = np.zeros((len(boxes), 20, 30), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def overlay(masks: np.ndarray, labels: list[int]) -> Overlay:
    return Overlay(np.zeros((len(labels), 4)), labels, None, masks)


def test_overlapping_and_touching_instances_stand_in_separate_mask_pictures():
    masks = rectangles((0, 0, 5, 5), (3, 3, 9, 9), (9, 0, 12, 12), (20, 0, 25, 20), (1, 1, 25, 20))
    layers = mask_layers(overlay(masks, [1, 2, 1, 2, 1]), {1: 1, 2: 2})
    assert all(layer.dtype == np.int8 and layer.shape == (20, 30) for layer in layers)
    assert [sorted(np.unique(layer).tolist()) for layer in layers] == [[0, 1, 2], [0, 2], [0, 1]]
    assert (layers[0] == 1).sum() == masks[0].sum() + masks[2].sum()
    assert ((layers[0] == 2) == masks[3]).all()
    assert ((layers[1] == 2) == masks[1]).all()
    assert ((layers[2] == 1) == masks[4]).all()


def test_more_than_127_classes_get_the_ids_of_those_that_occur():
    picture = AnnotatedImage("a", np.zeros((20, 30, 3), np.uint8), {"t": overlay(rectangles((0, 0, 5, 5)), [400])})
    assert allot_ids([picture], 500) == {400: 1}
    assert allot_ids([picture], 128)[127] == 127
    semantic = np.arange(600).reshape(20, 30)
    crowded = AnnotatedImage("b", picture.image, {"t": Overlay(np.zeros((0, 4)), [], None, semantic)})
    ids = allot_ids([picture, crowded], 500)
    assert len(ids) == 127
    assert ids[400] == 1  # the most frequent one
    assert max(layer.max() for layer in mask_layers(crowded.overlays["t"], ids)) == 127


def test_pictures_of_several_sizes_become_one_size():
    names = ["background", "cat", "dog"]
    pictures = [
        AnnotatedImage("a", np.full((20, 30, 3), 9, np.uint8), {"p": overlay(rectangles((0, 0, 5, 5)), [1])}),
        AnnotatedImage("b", np.full((25, 10, 3), 9, np.uint8), {"p": overlay(np.zeros((0, 25, 10), bool), [])}),
    ]
    images = to_wandb(pictures, names)
    assert {image.image.size for image in images} == {(30, 25)}
    assert to_wandb([], names) == []


def test_tensorboard_is_written_or_asked_for(shapes, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr("dasnet_lightning.training.loggers.find_spec", lambda name: None)
    command = ["train", str(shapes), *arguments(out=out, logger="tensorboard", steps=1, detector_steps=1)]
    assert main(command) == 2
    assert "logger tensorboard: the package tensorboard is not installed" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    assert main(command) == 0
    assert list(out.glob("detector/tensorboard/events*"))
    assert list(out.glob("masks-all/tensorboard/events*"))
