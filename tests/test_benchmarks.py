"""The benchmarks on small networks: they run, write their files, and say what the design promises."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.data.synthetic.dataset import write_synthetic

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


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("shapes") / "data", 40, 6)


def few_masks_options(data, out):
    network = ["--detector", "ssd_tiny", "--image-size", "64", "--main", "disc", "star"]
    methods = ["--methods", "ellipse", "crop", "zoom", "--budgets", "2objects", "--steps", "2"]
    return [data, "--name", "shapes", "--out", out, *network, *methods]


def test_few_masks(tmp_path, script, shapes, monkeypatch):
    out, page = tmp_path / "results", tmp_path / "page.md"
    few_masks = script("few_masks", *few_masks_options(shapes, out))
    results = importlib.import_module("few_masks_parts.results")
    rows = {row["method"]: row for row in results.read_rows(out / "shapes.csv").values()}
    assert set(rows) == {"ellipse", "crop", "zoom", "zoom_flip", "zoom_filter", "zoom_flip_filter"}
    assert rows["zoom"]["objects_by_class"].count("/2") == 2
    assert (rows["crop"]["masks"], rows["crop"]["steps"], rows["ellipse"]["masks"]) == ("4", "2", "")
    assert float(rows["zoom_flip"]["gmac_box"]) == pytest.approx(2 * float(rows["zoom"]["gmac_box"]), rel=1e-3)
    assert 0.4 < float(rows["ellipse"]["true/main/iou"]) < 0.8
    assert float(rows["ellipse"]["jittered/all/iou"]) < float(rows["ellipse"]["true/all/iou"])
    assert str(tmp_path) not in (out / "shapes.csv").read_text()

    def forbidden(*arguments):
        raise AssertionError("a finished point was run again")

    monkeypatch.setattr(few_masks, "_train", forbidden)
    written = (out / "shapes.csv").read_bytes()
    script("few_masks", *few_masks_options(shapes, out))
    assert (out / "shapes.csv").read_bytes() == written

    page.write_text("before\n<!-- few masks: begin -->\nold\n<!-- few masks: end -->\nafter\n")
    script("few_masks", "--table", "--out", out, "--docs", page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert [line[0] for line in table[2:]] == [
        "| filled ellipse",
        "| crop at 128 pixels, plain",
        *(f"| ours, zoom{extra}" for extra in ("", " + flip", " + guided filter", " + flip + guided filter")),
    ]
    ellipse, zoom = table[2], table[4]
    column = table[0].index("IoU")
    percent = [float(line[column].split()[0]) for line in (ellipse, zoom)]
    difference = float(ellipse[-1].split()[0])
    assert difference == pytest.approx(percent[1] - percent[0], abs=0.15)


def test_a_line_that_was_cut_off_is_run_again(tmp_path, script):
    results = importlib.import_module("few_masks_parts.results")
    path, first = tmp_path / "r.csv", dict.fromkeys(results.KEY, "a")
    results.append_row(path, first)
    with path.open("a") as file:
        file.write("a,b,half")
    assert list(results.read_rows(path)) == [results.make_key(first)]
    results.append_row(path, first | {"method": "b", "true/main/iou": 0.5})
    assert [row["method"] for row in results.read_rows(path).values()] == ["a", "b"]
    path.write_text("other,columns\n")
    with pytest.raises(SystemExit, match="columns"):
        results.read_rows(path)


def test_boundary_iou(script):
    measure = importlib.import_module("few_masks_parts.measure")
    true = np.zeros((300, 400), dtype=bool)  # 2 % of the diagonal are 10 pixels
    true[100:200, 100:200] = True
    mask = true.copy()
    mask[110:190, 110:190] = False  # the outline is kept
    assert measure.mask_ious(true, true) == (1.0, 1.0)
    assert measure.mask_ious(mask, true) == (pytest.approx(0.36), 1.0)
    mask = np.roll(true, 10, axis=1)
    assert measure.mask_ious(mask, true)[0] == pytest.approx(9000 / 11000)
    # outlines of 3,600 pixels; both share 80 in each of two sides of 10 rows, and four corners of 10 x 10
    shared = 2 * 10 * 90 + 0
    assert measure.mask_ious(mask, true)[1] == pytest.approx(shared / (7200 - shared))
    assert measure.mask_ious(~true & False, true) == (0.0, 0.0)


def test_rivals_see_the_same_objects(tmp_path, script, shapes):
    data = importlib.import_module("few_masks_parts.data")
    budgets = importlib.import_module("few_masks_parts.budgets")
    choice = data.DetectorChoice("ssd_tiny", {"image_size": 64})
    study = data.open_study(shapes, "shapes", "none", choice, 64, ["disc", "star"], tmp_path)
    kept = study.train.features
    images = torch.stack([study.train.dataset[(0, index)].image for index in (3, 5)]).float() / 255
    images[1] = images[1].flip(2)
    levels, expected_levels = kept.pyramid([3, 5], [False, True]).levels, study.detector.features(images).levels
    for level, expected in zip(levels, expected_levels, strict=True):
        assert torch.allclose(level, expected, atol=1e-3, rtol=1e-2)
    few, more = (budgets.draw_masks(study, f"{number}objects", 1) for number in (1, 3))
    assert {name: objects for name, (_, objects) in more.counts.items()} == {"disc": 3, "star": 3}
    assert all(set(objects) <= set(more.objects[index]) for index, objects in few.objects.items())
    limited = more.limit(study.train.targets)
    assert sum(int(target.has_mask.sum()) for target in limited) == 6
    for index in range(len(study.val)):
        overlap = box_iou(study.val.annotated(index).boxes, study.val.jittered(index).boxes).diagonal()
        assert ((overlap > 0.699) & (overlap < 0.801)).all()


def test_crops_are_those_of_the_mirrored_image(script, shapes):
    data, rivals = (importlib.import_module(f"few_masks_parts.{name}") for name in ("data", "rivals"))
    study = data.open_study(shapes, "s", "", data.DetectorChoice("ssd_tiny", {"image_size": 64}), 64, [], None)
    pixels = torch.arange(80 * 60).reshape(60, 80, 1).expand(-1, -1, 3) % 251
    windows = torch.tensor([[10.0, 5.0, 74.0, 55.0]])
    crop = rivals.cut(pixels.to(torch.uint8).numpy(), windows)
    assert crop.shape == (1, 3, 128, 128)
    (corner,) = rivals.cut(pixels.to(torch.uint8).numpy(), torch.tensor([[-64.0, -64.0, 64.0, 64.0]]))
    assert torch.allclose(corner[:, :60, :60], torch.tensor(rivals.IMAGENET_MEAN)[:, None, None].expand(-1, 60, 60))
    assert torch.allclose(corner[:, 64:124, 64:], pixels.permute(2, 0, 1)[:, :60, :64] / 255, atol=1e-3)
    learner, train = rivals.CropNet(study), study.train
    straight = learner.encode(train, 0, train.targets[0].boxes, False)
    mirrored = learner.encode(train, 0, train.mirrored_targets[0].boxes, True)
    assert straight[0].shape[-1] == 32
    assert not torch.equal(straight[0], mirrored[0])
    seen = []
    study.detector.features = lambda images: (
        seen.append(images) or data.Pyramid((images,) * 4, (4, 8, 16, 32), (128, 128))
    )
    learner.encode(train, 0, train.targets[0].boxes, False)
    learner.encode(train, 0, train.mirrored_targets[0].boxes, True)
    assert torch.allclose(seen[0], seen[1].flip(3), atol=1e-4)


def test_export(tmp_path, script, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "InferenceSession", onnxruntime.InferenceSession)  # the script gives it one thread
    options = "--detectors ssd_tiny --decoders zoom --size 96 --boxes 1 5 --repetitions 1"
    script("export", *options.split(), "--out", tmp_path)
    few, many = read_lines(tmp_path, "export")
    assert (few["boxes"], many["boxes"]) == (1, 5)
    assert many["ratio"] == pytest.approx(many["ours ms"] / many["run.py ms"], rel=0.05)


def test_on_gpu_in_its_short_form():
    """In a process of its own: the shape checks of the tests do not survive `torch.compile`."""
    command = [sys.executable, str(SCRIPTS / "on_gpu.py"), "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    parts = ("exactness", "compilation", "processes", "data", "inference", "training")
    assert not [document[name] for name in parts if "error" in document[name]]
    assert document["exactness"]["box-local against whole maps"] < 1e-4
    assert document["exactness"]["zoom, bf16 against fp32: IoU of masks"] > 0.9
    assert document["compilation"]["graphs"] <= 4  # few boxes, many, one, none
    assert document["processes"]["sum is right"]
    assert document["processes"]["gradient difference"] < 1e-6
    assert document["data"]["masks, ssd images/s"] > 0
    combinations = {(line["precision"], line["batch"], line["boxes"]) for line in document["inference"]}
    assert len(combinations) == 3 * 2 * 2
    assert all(
        line["ours ms"] > 0 and line["rival ms"] > 0 and line["ours peak_mb"] > 0 for line in document["inference"]
    )
    assert {line["precision"] for line in document["training"]} == {"fp32", "bf16", "compiled"}
    assert all(line["ours, stage two ms"] > 0 for line in document["training"])


def test_on_gpu_keeps_the_other_parts_if_one_fails(script, capsys, monkeypatch):
    on_gpu = importlib.import_module("on_gpu")

    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(on_gpu.PARTS, "compilation", fail)
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "--smoke", "--parts", "compilation", "data"])
    assert on_gpu.main() == 1
    document = json.loads(capsys.readouterr().out)
    assert document["compilation"] == {"error": "RuntimeError: out of memory"}
    assert document["data"]["masks, ssd images/s"] > 0


def test_batched_inference(tmp_path, script):
    options = "--networks ssd_tiny --images 3 --size 96 --objects 2 --batch-size 2 --rounds 1"
    script("batched_inference", *options.split(), "--out", tmp_path)
    (line,) = read_lines(tmp_path, "batched_inference")
    assert (line["network"], line["images"], line["objects"]) == ("ssd_tiny", 3, 2.0)
    assert line["many_1_ms"] > 0
    assert line["many_2_best"] > 0
