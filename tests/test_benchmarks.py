"""The benchmarks on small networks: they run, write their files, and say what the design promises."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from dasnet_lightning.data.sources.voc import VOCSource

SCRIPTS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"
LIGHT = "fasterrcnn_mobilenet_v3_large_320_fpn + masks"


@pytest.fixture
def script(monkeypatch):
    """Runs a script with its options, gives the module back."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(name, *options):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        module.main()
        return module

    yield run
    for path in SCRIPTS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def read_lines(folder, name):
    written = json.loads((folder / f"{name}.json").read_text())
    assert written["setting"]["threads"] == 1
    assert (folder / f"{name}.md").read_text().count("\n") == 2 + len(written["lines"])
    return written["lines"]


def test_decode(tmp_path, script):
    options = "--detector ssd_tiny --decoder light --size 128 --numbers 2 6 --sides 0.2 --repetitions 1 --boxes-timed 2"
    script("decode", *options.split(), "--out", tmp_path)
    few, many = read_lines(tmp_path, "decode")
    assert few["ours_gmac"] <= few["plain_gmac"] < few["authors_gmac"]
    assert many["ratio"] > 1.5
    assert many["memory_share"] < 0.5
    assert few["plain_s"] > 0
    assert "plain_s" not in many


def test_feature_cache(tmp_path, script):
    options = "--networks ssd_tiny --images 2 --size 64 --batch-size 1 --repetitions 1"
    script("feature_cache", *options.split(), "--out", tmp_path)
    (line,) = read_lines(tmp_path, "feature_cache")
    assert (line["network"], line["images"], line["same_figures"]) == ("ssd_tiny", 2, True)
    assert line["mb_an_image"] > 0.1
    assert line["cached_ms"] > 0


def test_precision(tmp_path, script):
    script("precision", "--repetitions", 1, "--batch", 1, "--out", tmp_path)
    assert all(line["fp32_ms"] > 0 and line["bf16_ms"] > 0 for line in read_lines(tmp_path, "precision"))


def test_inference(tmp_path, script):
    options = "--detector ssd_tiny --size 96 --detections 3 --candidates 8 --sides 0.3 --repetitions 1"
    script("inference", *options.split(), "--rivals", LIGHT, "--variants", "as trained", "--out", tmp_path)
    ours, trained, light = read_lines(tmp_path, "inference")
    assert (ours["input"], light["input"]) == (96, 96)
    assert ours["gmac"] == trained["gmac"]
    assert int(light["proposals"]) >= 1
    assert light["gmac"] > 3 * 0.5  # of the mask head for each box
    assert light["times ours"] == pytest.approx(light["ms"] / ours["ms"], rel=0.1)


def test_training(tmp_path, script):
    options = "--detector ssd_tiny --size 96 --batch 2 --objects 2 --repetitions 1 --trunks 0 --rois 8"
    script("training", *options.split(), "--rivals", LIGHT, "--out", tmp_path)
    one, two, both, light = read_lines(tmp_path, "training")
    assert both["ms per image"] == pytest.approx(one["ms per image"] + two["ms per image"], abs=0.2)
    assert min(one["gmac per image"], two["gmac per image"], light["gmac per image"]) > 0


@pytest.mark.parametrize(
    ("trainable", "learning"),
    [(0, set()), (3, {"layer2", "layer3", "layer4"}), (6, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"})],
)
def test_trunks_learn_as_in_torchvision(script, monkeypatch, trainable, learning):
    rivals = importlib.import_module("rivals")
    with torch.device("meta"):
        later = rivals.build_resnet50_v2(rivals.Shape(), trainable)
        first = rivals.build_resnet50(rivals.Shape(), trainable)
    for network, normed in ((later, True), (first, False)):
        body = network.backbone.body
        found = {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad}
        assert found == (learning if normed else learning - {"bn1"})


def test_peak_bytes_are_those_alive_together(script):
    harness = importlib.import_module("harness")

    def run():
        first = torch.zeros(1000)
        del first
        second, third = torch.zeros(500), torch.zeros(600)
        return second[:10], third  # a view is no new storage

    peak, (view, _) = harness.peak_bytes(run, torch.device("cpu"))
    assert (peak, len(view)) == (4 * 1100, 10)


def test_a_script_may_name_its_own_clock(script):
    harness = importlib.import_module("harness")
    assert harness.setting(torch.device("cpu"), clock="perf_counter")["clock"] == "perf_counter"


def test_scaling(tmp_path, script):
    options = "--size 64 --batch 1 --objects 1 --repetitions 1 --stages decoder --network tiny"
    script("scaling", *options.split(), "--out", tmp_path)
    one, two = read_lines(tmp_path, "scaling")
    assert (one["processes"], two["processes"]) == (1, 2)
    # four bytes for each parameter that learns; the frozen detector sends nothing
    assert (
        one["gradients a step, MB"]
        == two["gradients a step, MB"]
        == pytest.approx(4 * one["parameters that learn, M"], abs=0.1)
    )


def test_more_gpus_wait_for_one_another(script):
    scaling = importlib.import_module("scaling")
    figures = argparse.Namespace(tflops=400.0, link_gbytes=300.0, network_gbytes=25.0, images_per_core=80.0)
    alone, machine, machines = (scaling.project(gpus, 112.6, figures) for gpus in (1, 8, 64))
    assert alone["images/s"] == pytest.approx(1243, abs=1)  # 30,000 steps of 32 images in 309 PFLOP at 400 TFLOP/s
    assert alone["efficiency"] == 1 > machine["efficiency"] > machines["efficiency"] > 0.5
    assert alone["loader cores for each GPU"] == pytest.approx(1243 / 80, abs=0.1)


def test_data_path(tmp_path, script):
    root = tmp_path / "nothing"  # photographs are made up
    options = f"--root {root} --size 96 --images 6 --turns 2 --batches 2"
    data_path = script("data_path", *options.split(), "--out", tmp_path)
    tables = json.loads((tmp_path / "data_path.json").read_text())
    assert tables["setting"]["photographs"] == "made up"
    speed = {line["way"]: line for line in tables["speed"]}
    assert set(speed) == {"boxes, ssd", "masks, ssd", "masks, segment", "torchvision v2"}
    assert all(line["images/s"] > 0 for line in speed.values())
    assert speed["torchvision v2"]["ratio"] == 1
    parts = {line["part"]: line["share"] for line in tables["parts"]}
    assert all(parts[name] > 0 for name in data_path.PARTS), "every part was seen"
    assert abs(sum(parts.values()) - 1) < 0.02
    assert [line["ms"] > 0 for line in tables["transfer"]] == [True] * 3
    assert (tmp_path / "data_path.md").read_text().count("\n| ") > 15


def test_made_up_photographs_are_sound(tmp_path, script):
    data_path = importlib.import_module("data_path")
    source = VOCSource(data_path.make_photographs(tmp_path, 4), "train")
    assert source.problems == ()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read as Linux tells it")
def test_evaluation(tmp_path, script, monkeypatch):
    evaluation = importlib.import_module("evaluation")
    small = argparse.Namespace(images=8, instances=6, size=64, classes=4)
    memory = evaluation.measure_memory("ours", small)
    assert memory["kept_mb"] <= max(memory["update_peak_mb"], memory["compute_peak_mb"]) < 100
    monkeypatch.setattr(evaluation, "memory_elsewhere", lambda name: memory)  # a new process for each would take long
    options = "--images 24 --instances 6 --size 64 --classes 4 --repetitions 1"
    script("evaluation", *options.split(), "--out", tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert {"ours", "torchmetrics", "ours, pycocotools"} <= set(content["sides"])
    assert content["largest_ap_difference"] < 1e-6
    assert all(0.2 < side["ap"] < 0.9 and side["update_s"] > 0 for side in content["sides"].values())
    assert (tmp_path / "evaluation.md").read_text().count("\n") == 2 + len(content["sides"])


def test_batched_inference(tmp_path, script):
    options = "--networks ssd_tiny --images 3 --size 96 --objects 2 --batch-size 2 --rounds 1"
    script("batched_inference", *options.split(), "--out", tmp_path)
    (line,) = read_lines(tmp_path, "batched_inference")
    assert (line["network"], line["images"], line["objects"]) == ("ssd_tiny", 3, 2.0)
    assert line["many_1_ms"] > 0
    assert line["many_2_best"] > 0
