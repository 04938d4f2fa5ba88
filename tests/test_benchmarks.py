"""The benchmarks on a small network: they run, write their files, and say what the design promises."""

import importlib.util
import json
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"


def run(name, options, tmp_path, monkeypatch):
    """The lines that a script writes."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options.split(), "--out", str(tmp_path)])
    script.main()
    return json.loads((tmp_path / f"{name}.json").read_text())["lines"]


def test_decode(tmp_path, monkeypatch):
    options = "--detector ssd_tiny --decoder light --size 128 --numbers 2 6 --sides 0.2 --repetitions 1 --boxes-timed 2"
    few, many = run("decode", options, tmp_path, monkeypatch)
    assert few["ours_gmac"] <= few["plain_gmac"] < few["authors_gmac"]
    assert many["ratio"] > 1.5
    assert many["memory_share"] < 0.5
    assert few["plain_s"] > 0
    assert "plain_s" not in many
    assert (tmp_path / "decode.md").read_text().count("\n") == 4


def test_feature_cache(tmp_path, monkeypatch):
    options = "--networks ssd_tiny --images 2 --size 64 --batch-size 1 --repetitions 1"
    (line,) = run("feature_cache", options, tmp_path, monkeypatch)
    assert (line["network"], line["images"], line["same_figures"]) == ("ssd_tiny", 2, True)
    assert line["mb_an_image"] > 0.1
    assert line["cached_ms"] > 0
    assert (tmp_path / "feature_cache.md").read_text().count("\n") == 3
