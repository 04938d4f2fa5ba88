"""Every shipped YAML runs: the configurations are code, so they are tests."""

from pathlib import Path

import pytest
import yaml

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic import write_synthetic
from dasnet_lightning.inference import load
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.tasks.checkpoints import read_checkpoint

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
CONFIGS = sorted((EXPERIMENTS / "configs").glob("*.yaml"))  # configs/paper: test_paper_configs.py


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=4, num_val=2, size=64)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where Lightning writes its configuration


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_runs(config, shapes, capsys):
    overrides = ["--data.data_root", str(shapes), "--data.batch_size", "2", "--data.num_workers", "0"]
    if "detection" not in config.stem:
        overrides += ["--data.mask_budget", "all", "--data.samples_per_epoch", "2"]
    quick = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", str(config), *overrides, *quick]) == 0
    assert ("box AP50 in joint training" in capsys.readouterr().err) == ("joint" in config.stem)


def test_there_are_configs():
    assert len(CONFIGS) >= 3


def common(task, shapes):
    return [
        *("--model", task, "--model.init_args.detector", "ssd_tiny"),
        *("--data.data_root", str(shapes), "--data.image_size", "64", "--data.batch_size", "2"),
        *("--data.supervision", "masks", "--data.mask_budget", "2", "--trainer.max_steps", "2"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
    ]


@pytest.mark.parametrize("task", ["SemanticTask", "InstanceTask"])
def test_fit_validate_and_test_work_on_one_stage(task, shapes, tmp_path, capsys):
    cache = ["--model.init_args.feature_cache", str(tmp_path / "features")]
    assert main(["fit", *common(task, shapes), *cache]) == 0
    assert len(list((tmp_path / "features").iterdir())) == 2
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert main(["validate", *common(task, shapes)]) == 0
    printed = capsys.readouterr().out
    assert "val/miou_ground_truth_boxes" in printed
    assert "val/coco_ap_detected_boxes" in printed
    assert main(["test", *common(task, shapes)]) == 0

    assert "feature_cache" not in read_checkpoint(checkpoint)["hyper_parameters"]
    # the checkpoint's hyper-parameters are arguments: all three commands take it, and so does load()
    for command in ("validate", "test"):
        assert main([command, *common(task, shapes), "--ckpt_path", str(checkpoint)]) == 0
    assert main(["fit", *common(task, shapes), "--trainer.max_steps", "3", "--ckpt_path", str(checkpoint)]) == 0
    assert {read_checkpoint(path)["global_step"] for path in tmp_path.rglob("*.ckpt")} == {2, 3}
    options = load(checkpoint).options
    assert options == (InstanceOptions() if task == "InstanceTask" else SemanticOptions())


@pytest.mark.parametrize("task", ["SemanticTask", "InstanceTask"])
def test_print_config_shows_every_option(task, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model", task, "--print_config"])
    assert stop.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    arguments = shown["model"]["init_args"]
    assert arguments["decoder"] == "light"
    shared = {"detector", "detector_options", "detector_checkpoint", "decoder_options", "rounding", "optimizer"}
    assert shared | {"initial_checkpoint", "joint", "box_loss_weight", "subset", "inference"} <= set(arguments)
    assert ({"cells", "sampling"} <= set(arguments)) == (task == "InstanceTask")
    assert "head" not in arguments  # the final class chooses it
    assert shown["data"]["mask_budget"] == "all"


def test_options_of_the_tasks_can_be_set_on_the_command_line(shapes, tmp_path):
    chosen = [
        *("--model.init_args.cells", "3", "--model.init_args.sampling.negatives", "1"),
        *("--model.init_args.inference.grouping", "class", "--model.init_args.optimizer.lr", "0.5"),
        *("--model.init_args.joint", "true", "--model.init_args.decoder_options", "{widths: [8, 8, 8]}"),
    ]
    assert main(["fit", *common("InstanceTask", shapes), *chosen, "--trainer.max_steps", "1"]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    content = read_checkpoint(checkpoint)
    saved = content["hyper_parameters"]
    assert saved["cells"] == 3
    assert saved["joint"] is True
    assert saved["sampling"] == {"positives": 2, "negatives": 1, "min_iou": 0.0, "pixels": 40}
    rates = {group["initial_lr"] for group in content["optimizer_states"][0]["param_groups"]}
    assert rates == {0.5, 1.0, 0.05, 0.1}  # biases at twice the rate, the detector at a tenth
    assert load(checkpoint).options == InstanceOptions(grouping="class")
    assert load(checkpoint).model.head.out_channels == 18


def test_the_sweep_file_is_what_wandb_reads():
    sweep = yaml.safe_load((EXPERIMENTS / "sweeps" / "mask_budget.yaml").read_text())
    assert sweep["command"][0] == "dasnet"
    assert set(sweep["parameters"]) == {"mask_budget", "split_seed"}
    assert sweep["metric"]["name"].startswith("val/miou")
