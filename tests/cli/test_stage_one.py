"""Length, rate and warnings of stage one."""

from dataclasses import replace
from pathlib import Path

import pytest

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.label_audit import HELD_OUT
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.training.config import RunConfig, check_settings, default_detector_lr
from dasnet_lightning.training.detector_stage import default_steps, detector_warnings
from dasnet_lightning.training.stage import Stage


@pytest.mark.parametrize(
    ("images", "batch_size", "trained", "steps"),
    [(100, 16, False, 600), (671, 16, False, 1677), (100, 32, False, 300), (100, 16, True, 100), (2000, 16, True, 500)],
)
def test_the_length_of_stage_one_is_a_number_of_images(images: int, batch_size: int, trained: bool, steps: int) -> None:
    config = RunConfig("data", detector_batch_size=batch_size)
    assert default_steps(config, images, trained) == steps


def test_trained_predictors_get_a_low_rate() -> None:
    assert default_detector_lr("ssd300_mobilenet_v2", starts_trained=True) == 1e-4
    assert default_detector_lr("ssd300_mobilenet_v2") == 1e-3
    assert default_detector_lr("ssd320_vgg16") == 2e-4


def write_curve(folder: Path, values: list[float]) -> Stage:
    log = folder / "log" / "version_0"
    log.mkdir(parents=True)
    rows = [f"{step * 100},{value}" for step, value in enumerate(values, start=1)]
    (log / "metrics.csv").write_text("\n".join(["step,val/box_ap50", *rows]))
    return Stage("stage one", folder, 100 * len(values))


def test_a_weak_or_rising_detector_is_named(tmp_path: Path) -> None:
    (weak, rising) = detector_warnings(write_curve(tmp_path / "a", [0.1, 0.15, 0.2, 0.25]), {"val/box_ap50": 0.25})
    assert "the box AP50 is 0.25" in weak
    assert "still rose from 0.20 to 0.25 in the last 100 steps; more --detector-steps" in rising
    assert detector_warnings(write_curve(tmp_path / "b", [0.5, 0.7, 0.78, 0.79]), {"val/box_ap50": 0.79}) == []


def test_an_earlier_run_keeps_its_defaults(tmp_path: Path) -> None:
    assert RunConfig("data", str(tmp_path)).resolve().held_out == 0.1
    (tmp_path / "run.json").write_text('{"data": "data", "detector_lr": 0.001}')
    again = RunConfig("data", str(tmp_path)).resolve()
    assert (again.held_out, again.detector_ema, again.detector_lr) == (0.0, 0.0, 0.001)
    check_settings(again)
    with pytest.raises(ConfigError, match=r"decoder_options was \{\} and is \{'grid': 24\}"):
        check_settings(replace(again, decoder_options={"grid": 24}))


@pytest.mark.parametrize(
    ("options", "held_out"),
    [
        ((), True),
        (("--score-threshold", "0.3"), False),
        (("--detector", "boxes", "--detector-option", "backbone=resnet18"), False),
    ],
)
def test_images_are_held_out_only_to_choose_a_threshold(
    options: tuple[str, ...], held_out: bool, tmp_path: Path
) -> None:
    shapes = write_synthetic(tmp_path / "shapes", num_train=40, num_val=2, size=64)
    command = ["train", str(shapes), "--out", str(tmp_path / "run"), "--detector", "ssd_tiny", "--weights", "none"]
    command += [
        "--image-size",
        "64",
        "--held-out",
        "0.5",
        "--mask-budget",
        "4",
        "--detector-steps",
        "1",
        "--steps",
        "1",
    ]
    assert main([*command, "--num-workers", "0", "--accelerator", "cpu", *options]) == 0
    labels = (tmp_path / "run" / "masks-4" / "labels.csv").read_text()
    assert (HELD_OUT in labels) == held_out
