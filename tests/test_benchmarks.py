"""The benchmark of decoding on a small network: it runs, writes its files, and says what the design promises."""

import importlib.util
import json
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"


def test_decode(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("decode", SCRIPTS / "decode.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
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
