"""Every shipped YAML runs: the configurations are code, so they are tests."""

from pathlib import Path

import pytest
import yaml

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic import write_synthetic

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
CONFIGS = sorted((EXPERIMENTS / "configs").glob("*.yaml"))  # configs/paper: test_paper_configs.py


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=4, num_val=2, size=64)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where Lightning writes its configuration


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_runs(config, shapes):
    overrides = ["--data.data_root", str(shapes), "--data.batch_size", "2", "--data.num_workers", "0"]
    if "semantic" in config.stem:
        overrides += ["--data.mask_budget", "all", "--data.samples_per_epoch", "2"]
    quick = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", str(config), *overrides, *quick]) == 0


def test_there_are_configs():
    assert len(CONFIGS) >= 1


def test_fit_validate_and_test_work_on_one_stage(shapes, capsys):
    common = [
        *("--model", "SemanticTask", "--model.init_args.detector", "ssd_tiny"),
        *("--data.data_root", str(shapes), "--data.image_size", "64", "--data.batch_size", "2"),
        *("--data.supervision", "masks", "--data.mask_budget", "2", "--trainer.max_steps", "2"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
    ]
    assert main(["fit", *common, "--trainer.enable_checkpointing", "false"]) == 0
    assert main(["validate", *common]) == 0
    assert "val/miou_ground_truth_boxes" in capsys.readouterr().out
    assert main(["test", *common]) == 0


def test_print_config_shows_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model", "SemanticTask", "--print_config"])
    assert stop.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["init_args"]["decoder"] == "light"
    assert shown["data"]["mask_budget"] == "all"


def test_the_sweep_file_is_what_wandb_reads():
    sweep = yaml.safe_load((EXPERIMENTS / "sweeps" / "mask_budget.yaml").read_text())
    assert sweep["command"][0] == "dasnet"
    assert set(sweep["parameters"]) == {"mask_budget", "split_seed"}
    assert sweep["metric"]["name"].startswith("val/miou")
