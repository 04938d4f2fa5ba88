"""The paper's rows: every file trains on small files in the data's own layouts, and says what the paper says.

Each row takes a step with its own network; what several rows do one after the other is tried with a small one.
"""

import re
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from data_builders import VocObject, annotation, coco_content, make_coco, make_sbd, make_voc, square_polygon

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.sources.union_parts import VOC_NAMES
from dasnet_lightning.data.sources.voc_xml import VOC_CLASSES
from dasnet_lightning.data.splits import parse_budget
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.tasks.config import NetworkConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.semantic import SemanticTask

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "experiments" / "configs" / "paper"
ROWS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
QUICK = [
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--data.batch_size", "1", "--data.num_workers", "0"),
]  # fmt: skip
CAT, DOG = VocObject("cat", (6, 6, 15, 15)), VocObject("dog", (21, 11, 35, 25))
SBD_CAT, SBD_DOG = (8, (5, 5, 15, 14)), (12, (20, 10, 35, 25))


def command(row: str) -> list[str]:
    """What the row's comment tells to type, as arguments of `main`."""
    (line,) = re.findall(r"^# uv run dasnet (fit .*)$", ROWS[row].read_text(), re.MULTILINE)
    return [str(REPOSITORY / word) if word.endswith(".yaml") else word for word in line.split()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The shipped lists of data sets, without their counts, beside archives with a handful of pictures."""
    folder = tmp_path_factory.mktemp("data")
    for path in (REPOSITORY / "experiments" / "data").glob("*.yaml"):
        text = re.sub(r", expect: \d+", "", path.read_text())
        (folder / path.name).write_text(re.sub(r"^expect: .*$", "", text, flags=re.MULTILINE))
    seven = {"000001": [CAT], "000002": [DOG]}
    make_voc(folder / "VOCdevkit/VOC2007", seven, [], {"trainval": ["000001"], "test": ["000002"]})
    twelve = {"2008_000001": [CAT, DOG], "2008_000002": [DOG], "2008_000003": [CAT]}
    root = make_voc(folder / "VOCdevkit/VOC2012", twelve, list(twelve), {"trainval": list(twelve)})
    (root / "ImageSets/Segmentation").mkdir()
    (root / "ImageSets/Segmentation/train.txt").write_text("2008_000001\n2008_000002\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("2008_000003\n")
    sbd = {"2008_000001": [SBD_CAT, SBD_DOG], "2008_000003": [SBD_CAT], "2008_000009": [SBD_DOG]}
    make_sbd(folder / "benchmark_RELEASE/dataset", sbd, {"train": list(sbd)[:2], "val": list(sbd)[2:]})
    for split, image in (("train", 1), ("val", 2)):
        rows = [annotation(1, image, 5, segmentation=square_polygon())]
        content = coco_content(rows, image, ((5, "airplane"), (90, "toothbrush")))
        content["images"] = [item | {"file_name": f"{split}_{item['id']}.jpg"} for item in content["images"]]
        make_coco(folder / "coco", content, f"annotations/instances_{split}2017.json", f"{split}2017")
    return folder


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the runs go
    yield
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)  # checkpoints of whole networks


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """torchvision's weights are made up, not fetched."""

    def make(url, **options):
        name = "ssd300_vgg16" if "ssd300_vgg16" in url else "vgg16"
        given = {"num_classes": 91, "weights_backbone": None} if name == "ssd300_vgg16" else {}
        with torch.device("meta"):
            state = torchvision.models.get_model(name, weights=None, **given).state_dict()
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(1 << 20, generator=generator) - 0.5
        made = {key: noise.repeat(-(-v.numel() // len(noise)))[: v.numel()].view(v.shape) for key, v in state.items()}
        # of a size that keeps the answers of the layers about as large as what they are given
        scaled = {key: value * (6 / max(1, value[0].numel())) ** 0.5 for key, value in made.items() if value.ndim}
        return {key: value / 256 if key.endswith("features.0.weight") else value for key, value in scaled.items()}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", make)
    monkeypatch.setattr("dasnet_lightning.detectors.downloads.check_connection", lambda url: None)


def save(task: torch.nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}, path)


def make_earlier_stages(row: str, detector: str, decoder: str) -> None:
    """Untrained checkpoints where the row expects those of the rows before it."""
    arguments = yaml.safe_load(ROWS[row].read_text()).get("model", {}).get("init_args", {})
    recipe, classes = arguments.get("recipe", {}), (len(VOC_CLASSES), VOC_CLASSES)
    if "detector_checkpoint" in recipe:
        save(DetectionTask(*classes, detector=detector), Path(recipe["detector_checkpoint"]))
    if "initial_checkpoint" in recipe:
        task = SemanticTask if row.startswith("semantic") else InstanceTask
        save(task(*classes, network=NetworkConfig(detector, decoder=decoder)), Path(recipe["initial_checkpoint"]))


def data_root(row: str, data: Path) -> list[str]:
    """The option that puts the small files in the place of the row's own."""
    merged: dict[str, object] = {}
    for path in re.findall(r"\S+\.yaml", " ".join(command(row))):
        merged |= yaml.safe_load(Path(path).read_text()).get("data", {})
    own = REPOSITORY / str(merged["data_root"])
    assert own.is_file()
    assert own.parent == REPOSITORY / "experiments" / "data"
    return ["--data.data_root", str(data / own.name)]


# one row for each network that is trained, with the row's own network and size
WHOLE = (
    *("detection_box16.5k", "detection_ssd300_box16.5k", "semantic_seg10k", "semantic_seg10k_ssd300"),
    *("semantic_seg10k_joint", "instance_seg10k", "instance_seg10k_ssd300", "instance_seg10k_joint"),
)


def small(row: str) -> list[str]:
    """A small network, and small images, in the place of the row's own."""
    stage_one = row.startswith("detection")
    group = "--model.init_args" if stage_one else "--model.init_args.network"
    decoder = [] if stage_one else [f"{group}.decoder", "light"]
    return [f"{group}.detector", "ssd_tiny", f"{group}.detector_options", "{}", *decoder, "--data.image_size", "160"]


@pytest.mark.slow
@pytest.mark.parametrize("row", WHOLE)
def test_each_network_takes_a_step(row, data):
    make_earlier_stages(row, "ssd320_vgg16", "paper")
    # an untrained detector finds a hundred objects, each of which costs a decode in the validation
    few = ["--model.init_args.inference.max_detections", "1"] if row.startswith("instance") else []
    assert main([*command(row), *data_root(row, data), *few, *QUICK, "--trainer.fast_dev_run", "true"]) == 0


@pytest.mark.parametrize("row", [row for row in ROWS if row not in WHOLE])
def test_each_other_row_takes_a_step(row, data):
    """These train a network of `WHOLE` on other data, or further: a small one shows that their options fit together."""
    make_earlier_stages(row, "ssd_tiny", "light")
    assert main([*command(row), *data_root(row, data), *small(row), *QUICK, "--trainer.fast_dev_run", "true"]) == 0


def test_every_network_of_the_rows_is_tried_whole():
    def network(row: str) -> tuple[object, ...]:
        # as the file stands: the common part says the same for all rows of a task
        arguments = yaml.safe_load(ROWS[row].read_text()).get("model", {}).get("init_args", {})
        return row.split("_")[0], "ssd300" in row, arguments.get("joint", False)

    assert {network(row) for row in ROWS} == {network(row) for row in WHOLE}


def last(row: str) -> str:
    return f"runs/paper/{row}/last.ckpt"


def test_the_rows_follow_one_another_and_continue(data):
    """Checkpoints lie where the next row looks for them, count optimizer steps, and training goes on from them."""
    for row, steps, more in [
        ("detection_box16.5k", 1, ["--data.samples_per_epoch", "1"]),
        ("detection_box16.5k", 2, ["--data.samples_per_epoch", "1", "--ckpt_path", last("detection_box16.5k")]),
        ("semantic_seg10k", 3, ["--data.samples_per_epoch", "8", "--model.init_args.optimizer.steps", "[2]"]),
        ("semantic_seg10k_finetune", 1, []),
    ]:
        length = ["--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0"]
        assert main([*command(row), *data_root(row, data), *small(row), *QUICK, *length, *more]) == 0
        assert {path.name for path in Path("runs/paper", row).glob("*.ckpt")} <= {"last.ckpt", "last.previous.ckpt"}
        assert read_checkpoint(last(row))["global_step"] == steps
        assert list(Path("runs/paper", row).glob("version_*/config.yaml"))
    content = read_checkpoint(last("semantic_seg10k"))
    progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert progress["completed"] == 12  # batches of one image, four in a step
    (rates,) = ({group["lr"] for group in state["param_groups"]} for state in content["optimizer_states"])
    assert sorted(rates) == pytest.approx([0.001, 0.002])  # divided by ten after two steps, not two batches


def test_the_readmes_measurements_work(data, capsys):
    """Stage two goes on from its checkpoint, is validated with the options of its training, and fills VOC's folders."""
    row = "instance_seg10k"
    make_earlier_stages(row, "ssd_tiny", "light")
    options = [*command(row)[1:], *data_root(row, data), *small(row), *QUICK, "--data.samples_per_epoch", "4"]
    for steps, more in ((1, []), (2, ["--ckpt_path", last(row)])):
        length = ["--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0"]
        assert main(["fit", *options, *length, *more]) == 0
        assert read_checkpoint(last(row))["global_step"] == steps
    capsys.readouterr()
    assert main(["validate", *options, "--ckpt_path", last(row)]) == 0
    shown = set(re.findall(r"val/\w+", capsys.readouterr().out))
    protocols = [f"apr{threshold}_{protocol}" for threshold in (50, 70, 75) for protocol in ("area", "11point")]
    for figure in ("miou", "coco_ap", *protocols):
        assert {f"val/{figure}_detected_boxes", f"val/{figure}_ground_truth_boxes"} <= shown
    pictures = str(data / "VOCdevkit/VOC2012/JPEGImages")
    assert main(["segment", pictures, "--checkpoint", last(row), "--out", "pictures", "--voc-results", "voc"]) == 0
    maps = Path("voc/results/VOC2012/Segmentation/comp6_test_cls").glob("*.png")
    assert sorted(path.stem for path in maps) == ["2008_000001", "2008_000002", "2008_000003"]


def resolved(row: str, capsys) -> dict:
    with pytest.raises(SystemExit) as stop:
        main([*command(row), "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("row", ROWS)
def test_the_recipes_are_the_papers(row, capsys):
    """Paper section 8, and section 4 for inference."""
    config = resolved(row, capsys)
    model, data, trainer = config["model"]["init_args"], config["data"], config["trainer"]
    optimizer = model["optimizer"]
    assert data["batch_size"] * trainer["accumulate_grad_batches"] == 32
    assert data["samples_per_epoch"] % 32 == 0  # no step at the end of an epoch is smaller than the others
    assert data["augmentation"] == "ssd"
    assert data["image_size"] == (300 if "ssd300" in row else 320)
    assert (optimizer["name"], optimizer["momentum"], optimizer["weight_decay"]) == ("sgd", 0.9, 5e-4)
    assert (optimizer["double_bias"], optimizer["schedule"]) == (True, "step")
    assert trainer["callbacks"][-1]["init_args"]["dirpath"] == f"runs/paper/{row}"
    assert trainer["logger"]["init_args"]["name"] == row
    assert trainer["callbacks"][-1]["init_args"]["save_on_train_epoch_end"] is True
    lengths = (optimizer["lr"], tuple(optimizer["steps"]), trainer["max_steps"])
    if row.startswith("detection"):
        assert lengths == (0.001, (80_000, 100_000), 120_000)
        assert data["supervision"] == "boxes"
        return
    assert data["supervision"] == "masks"
    assert model["network"]["decoder"] == "paper"
    assert model["subset"] is True  # section 4.1: the number of class boxes is random
    assert model["network"]["detector"] == ("ssd300_vgg16" if "ssd300" in row else "ssd320_vgg16")
    lr, (step,), steps = lengths
    assert 2 * step == steps
    if not row.endswith("finetune"):
        assert (lr, steps) == (0.01 if row.startswith("semantic") else 0.02, 30_000)
    assert model["recipe"] is None or model["recipe"]["joint"] == (row.split("_")[-1] in ("joint", "finetune"))
    inference = model["inference"]
    if row.startswith("semantic"):
        names = ("score_threshold", "max_classes", "foreground_threshold", "box_margin", "weight_by_score")
        assert [inference[name] for name in names] == [0.5, 5, 0.2, 5, False]
    else:
        assert (model["cells"], model["sampling"]["positives"], model["sampling"]["negatives"]) == (7, 2, 4)
        assert inference["grouping"] == "instance"
        assert inference["weight_by_instance_score"] is False  # the test stage gives masks only
    budget = row.split("_")[1]
    assert parse_budget(data["mask_budget"]).name == (budget if budget in ("seg100", "seg200", "seg500") else "all")
    assert Path(data["data_root"]).stem == ("seg1.4k" if budget == "seg1.4k" else "seg10k")


@pytest.mark.parametrize("row", [row for row in ROWS if "ssd300" in row])
def test_the_released_detector_answers_for_vocs_classes(row, capsys):
    names = torchvision.models.detection.SSD300_VGG16_Weights.COCO_V1.meta["categories"]
    arguments = resolved(row, capsys)["model"]["init_args"]
    options = arguments.get("network", arguments)["detector_options"]  # flat in stage one
    chosen = [names[place] for place in options["predictor_classes"]]
    assert [VOC_NAMES.get(name, name) for name in chosen] == ["__background__", *VOC_CLASSES[1:]]


@pytest.mark.parametrize("name", ["DetectionTask", "SemanticTask", "InstanceTask"])
def test_print_config_works_for_each_task(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model", name, "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"].endswith(f".{name}")


def test_a_row_without_the_common_part_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(ROWS["semantic_seg100"]), "--print_config"])
    assert stop.value.code != 0
    assert "detector_checkpoint" in capsys.readouterr().err


def test_the_readme_has_the_command_of_each_row():
    readme = (REPOSITORY / "experiments" / "README.md").read_text()
    for row in ROWS:
        (line,) = re.findall(r"^# (uv run dasnet fit .*)$", ROWS[row].read_text(), re.MULTILINE)
        assert f"`{line}`" in readme
        assert line.endswith(f" --config experiments/configs/paper/{row}.yaml")
    assert set(re.findall(r"paper/([\w.]+)\.yaml", readme)) == {*ROWS, "ROW"}


def test_both_tasks_have_a_row_on_the_released_detector_without_a_stage_one(capsys):
    """Footnote 1 of the paper: 300x300 where the released SSD300 of COCO is the detector."""
    for row in ("semantic_seg10k_ssd300", "instance_seg10k_ssd300"):
        model = resolved(row, capsys)["model"]["init_args"]
        assert model["network"]["detector_options"]["backbone_weights"] == "COCO_V1"
        assert not (model["recipe"] or {}).get("detector_checkpoint")


def test_the_docs_say_what_the_rows_read_and_where_they_are_measured():
    for page in ("experiments/README.md", "docs/paper_settings.md"):
        text = " ".join((REPOSITORY / page).read_text().split())
        assert "`.mat` files" in text
        assert "for VOC's test server" in text
