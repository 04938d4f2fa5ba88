"""The benchmarks on a small network: they run, write their files, and say what the design promises."""

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


def run(name, options, tmp_path, monkeypatch):
    """What a script writes."""
    script = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options.split(), "--out", str(tmp_path)])
    script.main()
    return json.loads((tmp_path / f"{name}.json").read_text())


def test_decode(tmp_path, monkeypatch):
    options = "--detector ssd_tiny --decoder light --size 128 --numbers 2 6 --sides 0.2 --repetitions 1 --boxes-timed 2"
    few, many = run("decode", options, tmp_path, monkeypatch)["lines"]
    assert few["ours_gmac"] <= few["plain_gmac"] < few["authors_gmac"]
    assert many["ratio"] > 1.5
    assert many["memory_share"] < 0.5
    assert few["plain_s"] > 0
    assert "plain_s" not in many
    assert (tmp_path / "decode.md").read_text().count("\n") == 4


def test_feature_cache(tmp_path, monkeypatch):
    options = "--networks ssd_tiny --images 2 --size 64 --batch-size 1 --repetitions 1"
    (line,) = run("feature_cache", options, tmp_path, monkeypatch)["lines"]
    assert (line["network"], line["images"], line["same_figures"]) == ("ssd_tiny", 2, True)
    assert line["mb_an_image"] > 0.1
    assert line["cached_ms"] > 0
    assert (tmp_path / "feature_cache.md").read_text().count("\n") == 3


def test_data_path(tmp_path, monkeypatch):
    root = tmp_path / "nothing"  # photographs are made up
    options = f"--root {root} --size 96 --images 6 --turns 2 --batches 2"
    tables = run("data_path", options, tmp_path, monkeypatch)
    assert tables["setting"]["photographs"] == "made up"
    speed = {line["way"]: line for line in tables["speed"]}
    assert set(speed) == {"boxes, ssd", "masks, ssd", "masks, segment", "torchvision v2"}
    assert all(line["images/s"] > 0 for line in speed.values())
    assert speed["torchvision v2"]["ratio"] == 1
    parts = {line["part"]: line["share"] for line in tables["parts"]}
    assert all(parts[name] > 0 for name in load("data_path").PARTS), "every part was seen"
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
