"""Every shipped YAML runs: the configurations are code, so they are tests."""

import os
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.inference.segmenter import load
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.storage.checksum import Seal, check_seal
from dasnet_lightning.storage.reading import SEALED
from dasnet_lightning.tasks.checkpoint_info import FLAT_BEFORE_FORMAT_2
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.tasks.config import NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.semantic import SemanticTask

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
        *("--model", task, "--model.init_args.network.detector", "ssd_tiny"),
        *("--data.data_root", str(shapes), "--data.image_size", "64", "--data.batch_size", "2"),
        *("--data.supervision", "masks", "--data.mask_budget", "2", "--trainer.max_steps", "2"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
    ]


@pytest.mark.parametrize("task", ["SemanticTask", "InstanceTask"])
def test_fit_validate_and_test_work_on_one_stage(task, shapes, tmp_path, capsys):
    cache = ["--model.init_args.evaluation.feature_cache", str(tmp_path / "features")]
    assert main(["fit", *common(task, shapes), *cache]) == 0
    assert len(list((tmp_path / "features").iterdir())) == 2
    (checkpoint,) = tmp_path.rglob("epoch*.ckpt")  # beside last.ckpt
    assert check_seal(checkpoint) is Seal.INTACT  # without a word in the configuration
    assert main(["validate", *common(task, shapes)]) == 0
    printed = capsys.readouterr().out
    assert "val/miou_ground_truth_boxes" in printed
    assert "val/coco_ap_detected_boxes" in printed
    assert main(["test", *common(task, shapes)]) == 0

    assert "evaluation" not in read_checkpoint(checkpoint)["hyper_parameters"]
    # the checkpoint's hyper-parameters are arguments: all three commands take it, and so does load()
    for command in ("validate", "test"):
        assert main([command, *common(task, shapes), "--ckpt_path", str(checkpoint)]) == 0
    assert main(["fit", *common(task, shapes), "--trainer.max_steps", "3", "--ckpt_path", str(checkpoint)]) == 0
    assert {read_checkpoint(path)["global_step"] for path in tmp_path.rglob("*.ckpt")} == {2, 3}
    options = load(checkpoint).options
    assert options == (InstanceOptions() if task == "InstanceTask" else SemanticOptions())


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
@pytest.mark.parametrize("task", ["SemanticTask", "InstanceTask"])
def test_a_flat_checkpoint_is_continued_and_validated(task, shapes, tmp_path):
    """Format 1, as version 0.1.0 wrote it from `dasnet fit` and, without LightningCLI's keys, from `dasnet train`."""
    assert main(["fit", *common(task, shapes), "--model.init_args.network.rounding", "inside"]) == 0
    (checkpoint,) = tmp_path.rglob("epoch*.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    saved = content["hyper_parameters"]
    for group, names in FLAT_BEFORE_FORMAT_2.items():
        nested = saved.pop(group)
        saved |= {name: nested[name] for name in names}  # format 1 had none of the later ones
    content["dasnet_lightning"]["format"] = 1
    assert "_class_path" in saved
    for name, keys in (("fit", set(saved)), ("train", {key for key in saved if key[0] != "_"})):
        old = tmp_path / f"{name}.ckpt"
        torch.save(content | {"hyper_parameters": {key: saved[key] for key in keys}, SEALED: False}, old)
        assert main(["validate", *common(task, shapes), "--ckpt_path", str(old)]) == 0
        out = ["--trainer.max_steps", "3", "--trainer.default_root_dir", str(tmp_path / name)]
        assert main(["fit", *common(task, shapes), *out, "--ckpt_path", str(old)]) == 0
        (continued,) = (tmp_path / name).rglob("epoch*.ckpt")
        assert read_checkpoint(continued)["hyper_parameters"]["network"]["rounding"] == "inside"


def test_a_bad_checkpoint_is_one_sentence_and_exit_code_2(shapes, tmp_path, capsys):
    """Lightning's own answers, which advise to switch the safe loading off, or are a page long, never reach a user."""
    ours = {"detector": "ssd_tiny", "num_classes": 4, "task": "instance"}
    files = {
        "page": (b"<html>404</html>", "it is an HTML page"),
        "code": ({"state_dict": {}, "hyper_parameters": torch.nn.ReLU()}, "refused: reading it would run code"),
        "foreign": (
            {"features.0.weight": torch.zeros(1)},
            "not a checkpoint of dasnet_lightning, it is a state dict alone",
        ),
        "other": (
            {"state_dict": {}, "hyper_parameters": ours},
            "holds a task 'instance', expected 'semantic' for Semantic",
        ),
        "none": (None, "no such checkpoint"),
    }
    for name, (content, sentence) in files.items():
        path = tmp_path / f"{name}.ckpt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        for command in ("validate", "fit") if name == "code" else ("validate",):
            assert main([command, *common("SemanticTask", shapes), "--ckpt_path", str(path)]) == 2, name
            said = capsys.readouterr().err.strip()
            assert said.startswith(f"dasnet: {path}: "), said
            assert sentence in said
            assert "\n" not in said
            assert "weights_only" not in said


@pytest.mark.parametrize("task", ["SemanticTask", "InstanceTask"])
def test_print_config_shows_every_option(task, capsys):
    given = ["--model.init_args.network.detector", "ssd_tiny", "--model.init_args.recipe.joint", "true"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model", task, *given, "--print_config"])
    assert stop.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    arguments = shown["model"]["init_args"]
    assert arguments["network"] == asdict(NetworkConfig("ssd_tiny"))
    assert arguments["recipe"] == asdict(RecipeConfig(joint=True))
    assert {"evaluation", "optimizer", "subset", "inference"} <= set(arguments)
    assert ({"cells", "sampling"} <= set(arguments)) == (task == "InstanceTask")
    assert "head" not in arguments  # the final class chooses it
    assert shown["data"]["mask_budget"] == "all"


def test_options_of_the_tasks_can_be_set_on_the_command_line(shapes, tmp_path):
    chosen = [
        *("--model.init_args.cells", "3", "--model.init_args.sampling.negatives", "1"),
        *("--model.init_args.inference.grouping", "class", "--model.init_args.optimizer.lr", "0.5"),
        *("--model.init_args.recipe.joint", "true", "--model.init_args.network.decoder_options", "{widths: [8, 8, 8]}"),
    ]
    assert main(["fit", *common("InstanceTask", shapes), *chosen, "--trainer.max_steps", "1"]) == 0
    (checkpoint,) = tmp_path.rglob("epoch*.ckpt")  # beside last.ckpt
    content = read_checkpoint(checkpoint)
    saved = content["hyper_parameters"]
    assert saved["cells"] == 3
    assert saved["recipe"]["joint"] is True
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


def test_a_fit_that_was_stopped_goes_on_from_last(shapes, tmp_path, monkeypatch, capsys):
    def last_step() -> dict:
        return read_checkpoint(max(tmp_path.rglob("epoch*.ckpt"), key=lambda path: path.stat().st_mtime_ns))

    def stop(task, batch_index):
        if task.trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = [*common("SemanticTask", shapes), "--trainer.max_steps", "6", "--trainer.default_root_dir"]
    assert main(["fit", *arguments, str(tmp_path / "whole")]) == 0
    whole = last_step()
    with monkeypatch.context() as patch:
        patch.setattr(SemanticTask, "on_train_batch_start", lambda self, batch, index: stop(self, index))
        assert main(["fit", *arguments, str(tmp_path / "stopped")]) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM at step 5" in capsys.readouterr().err
    assert main(["fit", *arguments, str(tmp_path / "stopped"), "--ckpt_path", "last"]) == 0
    continued = last_step()
    assert continued["global_step"] == whole["global_step"] == 6
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, continued["state_dict"][name]), name


# a new version of the log has a folder of its own, which Lightning points out
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_last_is_found_below_a_logger_that_counts_versions(shapes, tmp_path, capsys):
    arguments = [
        *common("SemanticTask", shapes),
        "--trainer.logger",
        "CSVLogger",
        "--trainer.logger.save_dir",
        str(tmp_path),
    ]
    assert main(["fit", *arguments, "--ckpt_path", "last"]) == 2
    assert "--ckpt_path last: there is no last.ckpt below" in capsys.readouterr().err
    assert main(["fit", *arguments]) == 0
    assert main(["fit", *arguments, "--trainer.max_steps", "4", "--ckpt_path", "last"]) == 0
    steps = [read_checkpoint(path)["global_step"] for path in tmp_path.rglob("epoch*.ckpt")]
    assert max(steps) == 4
    assert len(list(tmp_path.rglob("metrics.csv"))) >= 2
