"""The script that turns W&B runs into a table and a curve: offline files, and exports as CSV and JSON."""

import csv
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import wandb

METRIC = "val/miou_ground_truth_boxes"
RESULTS = [("2/class", 0, 10, 0.4), ("2/class", 1, 12, 0.5), ("all", 0, 90, 0.8)]


@pytest.fixture(scope="module")
def curve():
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
    yield import_module("wandb_curve")
    sys.path.pop(0)


def write_offline(folder: Path) -> Path:
    for number, (budget, seed, masks, value) in enumerate(RESULTS):
        with wandb.init(dir=folder, mode="offline", id=f"run{number}", config={"split_seed": seed}) as run:
            run.log({"detector/step": 1, "detector/train/loss": 3.0})
            run.log({"budget": budget, "mask_objects": masks, METRIC: value})
    return folder


def write_csv(folder: Path) -> Path:
    path = folder / "export.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Name", "ID", "State", "mask_budget", "split_seed", "mask_objects", METRIC])
        for number, (budget, seed, masks, value) in enumerate(RESULTS):
            writer.writerow(["run", f"run{number}", "finished", budget, seed, masks, value])
        writer.writerow(["run", "run3", "crashed", "all", 1, "", ""])
    return path


def write_json(folder: Path) -> Path:
    path = folder / "export.json"
    runs = [
        {
            "id": f"run{number}",
            "config": {"split_seed": seed, "mask_budget": budget},
            "summary": {"mask_objects": masks, METRIC: value},
        }
        for number, (budget, seed, masks, value) in enumerate(RESULTS)
    ]
    path.write_text(json.dumps([*runs, {"id": "run3", "config": {"mask_budget": "all"}, "summary": {}}]))
    return path


@pytest.mark.parametrize("write", [write_offline, write_csv, write_json])
def test_all_sources_give_the_same_table_and_curve(curve, tmp_path, capsys, monkeypatch, write):
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    source = write(tmp_path)
    found = curve.read_source(source)
    assert [(item.run, item.budget, item.masks, item.seed) for item in found] == [
        ("run0", "2/class", 10, "0"),
        ("run1", "2/class", 12, "1"),
        ("run2", "all", 90, "0"),
    ]
    first, second = curve.summarize(found, METRIC)
    assert first == ("2/class", 2, 11, pytest.approx(0.45), pytest.approx(0.0707, abs=1e-4))
    assert second == ("all", 1, 90, 0.8, None)
    table, page = tmp_path / "rows.csv", tmp_path / "page.html"
    assert curve.main([str(source), "--metric", METRIC, "--csv", str(table), "--page", str(page)]) == 0
    assert "2/class" in capsys.readouterr().out
    assert len(table.read_text().splitlines()) == 4
    assert "<svg" in page.read_text()


def test_a_source_without_results_is_refused(curve, tmp_path, capsys):
    assert curve.main([str(tmp_path)]) == 2
    assert "holds no result of a mask budget" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("")
    assert curve.main([str(tmp_path / "a.txt")]) == 2
    assert "expected a folder" in capsys.readouterr().err
