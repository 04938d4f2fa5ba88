"""The benchmarks on something small: they run, write their files, and say what the design promises."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    return script


def test_decode(tmp_path, monkeypatch):
    script = load_script("decode")
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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read as Linux tells it")
def test_evaluation(tmp_path, monkeypatch):
    script = load_script("evaluation")
    options = ["--images", "24", "--instances", "6", "--size", "64", "--classes", "4", "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *options, "--out", str(tmp_path)])
    small = argparse.Namespace(images=8, instances=6, size=64, classes=4)
    memory = script.measure_memory("ours", small)
    assert memory["kept_mb"] <= max(memory["update_peak_mb"], memory["compute_peak_mb"]) < 100
    monkeypatch.setattr(script, "memory_elsewhere", lambda name: memory)  # a new process for each would take long
    script.main()
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert {"ours", "torchmetrics", "ours, pycocotools"} <= set(content["sides"])
    assert content["largest_ap_difference"] < 1e-6
    assert all(0.2 < side["ap"] < 0.9 and side["update_s"] > 0 for side in content["sides"].values())
    assert (tmp_path / "evaluation.md").read_text().count("\n") == 2 + len(content["sides"])
