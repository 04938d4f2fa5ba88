"""`dasnet sweep`: points, their table and page, continuation, more budgets later, and sweep files run without a server."""

import csv
import json
from pathlib import Path

import pytest

import dasnet_lightning
from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.sweeps.points import POINT
from tiny_run import TINY, TINY_DETECTOR

OPTIONS = {"score_threshold": 0.3, **TINY_DETECTOR, **TINY}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=14, num_val=5, size=64)


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "run"
    result = dasnet_lightning.sweep(shapes, ("2", "all"), 2, out, **OPTIONS)
    assert len(result.points) == 4
    return out


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_budget_and_seed_is_a_row(finished):
    rows = read_rows(finished)
    assert [(row["budget"], row["seed"]) for row in rows] == [("2", "0"), ("all", "0"), ("2", "1"), ("all", "1")]
    assert {row["mask_images"] for row in rows if row["budget"] == "2"} == {"2"}
    assert all(0 <= float(row["miou_ground_truth_boxes"]) <= 1 for row in rows)
    split = [json.loads((finished / f"seed-{seed}" / "masks-2" / "split.json").read_text()) for seed in (0, 1)]
    assert [item["seed"] for item in split] == [0, 1]


def test_the_page_has_curve_cost_and_advice(finished):
    page = (finished / "sweep.html").read_text()
    for text in (
        "Learning curve",
        "share of all masks",
        "gain of a doubling",
        "masks worth drawing",
        "box AP50",
        "<svg",
    ):
        assert text in page


def test_finished_points_are_not_trained_again_and_budgets_can_be_added(finished, shapes):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("final.ckpt")}
    assert len(before) == 5
    table = (finished / "sweep.csv").read_bytes()
    result = dasnet_lightning.sweep(shapes, ("2", "6", "all"), 2, finished, **OPTIONS)
    assert {point.budget for point in result.points} == {"2", "6", "all"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    dasnet_lightning.sweep(shapes, ("2", "all"), 2, finished, **OPTIONS)
    assert (finished / "sweep.csv").read_bytes() == table


def test_an_interrupted_point_is_trained_to_the_same_result(finished, shapes):
    table = (finished / "sweep.csv").read_bytes()
    folder = finished / "seed-1" / "masks-2"
    for name in (POINT, "final.ckpt", "metrics.json"):
        (folder / name).unlink()
    dasnet_lightning.sweep(shapes, ("2", "all"), 2, finished, **OPTIONS)
    assert (finished / "sweep.csv").read_bytes() == table


def test_other_options_in_the_same_folder_are_refused(finished, shapes):
    with pytest.raises(ConfigError, match="steps was 3 and is 5"):
        dasnet_lightning.sweep(shapes, ("2",), 1, finished, **OPTIONS | {"steps": 5})
    with pytest.raises(ConfigError, match="split_seed is not an option of a sweep"):
        dasnet_lightning.sweep(shapes, ("2",), 1, finished, **OPTIONS, split_seed=3)


def test_rivals_give_the_mask_multiplier(finished, shapes, tmp_path):
    rivals = tmp_path / "few_masks.csv"
    rows = [("crop", 5, 0.0), ("crop", 1000, 1.0), ("weak", 5, 0.0), ("weak", 40, 0.0)]
    rivals.write_text("method,masks,true/all/ap\n" + "".join(f"{name},{n},{value}\n" for name, n, value in rows))
    dasnet_lightning.sweep(shapes, ("2", "all"), 2, finished, rivals=rivals, **OPTIONS)
    page = (finished / "sweep.html").read_text()
    assert "Mask multiplier" in page
    assert "dasnet_lightning.sweep(" in page
    assert "rivals=" in page


def test_unreadable_rivals_are_refused_before_any_training(shapes, tmp_path):
    rivals, out = tmp_path / "few_masks.csv", tmp_path / "sweep"
    rivals.write_text("name,value\nx,1\n")
    with pytest.raises(ConfigError, match="expected the columns method, masks"):
        dasnet_lightning.sweep(shapes, ("2", "all"), 2, out, rivals=rivals, **OPTIONS)
    with pytest.raises(ConfigError, match=r"missing\.csv: cannot be read"):
        dasnet_lightning.sweep(shapes, ("2", "all"), 2, out, rivals=tmp_path / "missing.csv", **OPTIONS)
    assert not out.exists()


def test_a_sweep_file_runs_every_point_once_without_a_server(shapes, finished, tmp_path, capfd):
    words = [
        *("dasnet", "train", str(shapes), "--detector-checkpoint", str(finished / "detector" / "final.ckpt")),
        *("--decoder", "zoom", "--batch-size", "4", "--num-workers", "0", "--accelerator", "cpu"),
        *("--precision", "32-true", "--score-threshold", "0.3", "${args_no_boolean_flags}"),
    ]
    path = tmp_path / "steps.yaml"
    lines = ["program: dasnet", "method: grid", "parameters:", "  steps: {values: [1, 2]}", "command:"]
    path.write_text("\n".join([*lines, *(f"  - {json.dumps(word)}" for word in words)]))
    out = tmp_path / "points"
    assert main(["sweep", str(path), "--out", str(out)]) == 0
    configs = [json.loads((out / f"point-{number:03d}" / "run.json").read_text()) for number in (0, 1)]
    assert [item["steps"] for item in configs] == [1, 2]
    capfd.readouterr()
    assert main(["sweep", str(path), "--out", str(out)]) == 0
    assert capfd.readouterr().out.count("done before") == 2


def test_a_sweep_file_that_does_not_train_is_refused(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("program: x.py\nmethod: grid\nparameters:\n  a: {values: [1]}\n")
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
