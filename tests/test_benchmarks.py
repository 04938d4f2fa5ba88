"""The benchmarks at small: they run, write their files, and say what the design promises."""

import importlib.util
import json
import sys
from pathlib import Path

from dasnet_lightning.data.voc import VOCSource

SCRIPTS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_decode(tmp_path, monkeypatch):
    script = load("decode")
    options = "--detector ssd_tiny --decoder light --size 128 --numbers 2 6 --sides 0.2 --repetitions 1 --boxes-timed 2"
    monkeypatch.setattr(sys, "argv", ["decode.py", *options.split(), "--out", str(tmp_path)])
    script.main()
    few, many = json.loads((tmp_path / "decode.json").read_text())["lines"]
    assert few["ours_gmac"] <= few["plain_gmac"] < few["authors_gmac"]
    assert many["ratio"] > 1.5
    assert many["memory_share"] < 0.5
    assert few["plain_s"] > 0
    assert "plain_s" not in many
    assert (tmp_path / "decode.md").read_text().count("\n") == 4


def test_data_path(tmp_path, monkeypatch):
    script = load("data_path")
    root = tmp_path / "nothing"  # photographs are made up
    options = f"--root {root} --size 96 --images 6 --turns 2 --batches 2 --out {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["data_path.py", *options.split()])
    script.main()
    tables = json.loads((tmp_path / "data_path.json").read_text())
    assert tables["setting"]["photographs"] == "made up"
    speed = {line["way"]: line for line in tables["speed"]}
    assert set(speed) == {"boxes, ssd", "masks, ssd", "masks, segment", "torchvision v2"}
    assert all(line["images/s"] > 0 for line in speed.values())
    assert speed["torchvision v2"]["ratio"] == 1
    parts = {line["part"]: line["share"] for line in tables["parts"]}
    assert all(parts[name] > 0 for name in script.PARTS), "every part was seen"
    assert abs(sum(parts.values()) - 1) < 0.02
    assert [line["ms"] > 0 for line in tables["transfer"]] == [True] * 3
    assert (tmp_path / "data_path.md").read_text().count("\n| ") > 15


def test_made_up_photographs_are_sound(tmp_path):
    script = load("data_path")
    source = VOCSource(script.make_photographs(tmp_path, 4), "train")
    assert source.problems == ()
    for record in source.records:
        assert record.size == (375, 500)
        assert all(source.load_masks(record, range(len(record.objects))).valid)
