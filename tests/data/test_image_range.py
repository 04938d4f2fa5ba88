"""One range for the images of more than 8 bits of a data set: found by the data module, kept in checkpoints, used again."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from data_builders import annotation, coco_content, make_coco
from PIL import Image

from dasnet_lightning import load
from dasnet_lightning.cli.main import main
from dasnet_lightning.data import pixels
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.pixels import ImageRange
from dasnet_lightning.data.sources.open import open_dataset
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.tasks.checkpoints import read_checkpoint

TINY = [
    *("--detector", "ssd_tiny", "--weights", "none", "--image-size", "64", "--accelerator", "cpu"),
    *("--detector-steps", "2", "--steps", "2", "--detector-batch-size", "4", "--batch-size", "4"),
    *("--num-workers", "0", "--precision", "32-true", "--mask-budget", "5"),
]


def deepen(root: Path, factor: float, dtype: type, suffix: str) -> Path:
    """Replace the JPEGs of a data set by gray images of more than 8 bits; value v becomes v * factor."""
    for path in sorted(root.rglob("*.jpg")):
        with Image.open(path) as image:
            values = np.asarray(image.convert("L")).astype(np.float64) * factor
        Image.fromarray(values.astype(dtype)).save(path.with_suffix(suffix))
        path.unlink()
    for file in root.rglob("*.json"):
        file.write_text(file.read_text().replace(".jpg", suffix))
    return root


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Shapes in 12 bits, stored in 16."""
    return deepen(write_synthetic(tmp_path / "shapes", 10, 3, size=64), 16, np.uint16, ".png")


def build(root: Path) -> MixedSupervisionDataModule:
    return MixedSupervisionDataModule(str(root), image_size=64, batch_size=4, augmentation="none")


def test_the_data_module_scales_every_image_by_one_range(shapes: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels.announce_range.cache_clear()
    with caplog.at_level(logging.WARNING):
        data, again = build(shapes), build(shapes)
        assert data.image_range == again.image_range == (0, 4095)
    assert [record.message for record in caplog.records] == [
        f"{shapes}: images of more than 8 bits are scaled from 0..4095 to 0..255"
    ]
    for dataset in (data.train_set(), data.val_set(), data.calibration_dataloader(4).dataset):
        assert dataset.image_range == ImageRange(0, 4095)
        for index, record in enumerate(dataset.records):
            stored = np.asarray(Image.open(record.path))
            image = dataset[(0, index)].image
            assert image.shape == (3, 64, 64)
            assert int(image.max()) == round(int(stored.max()) * 255 / 4095)
    assert caplog.text.count("scaled") == 1


@pytest.mark.parametrize(("factor", "expected"), [(1 / 255, (0, 1)), (10.5, None)])
def test_a_data_set_of_floats(tmp_path: Path, factor: float, expected: tuple[float, float] | None) -> None:
    root = deepen(write_synthetic(tmp_path / "shapes", 6, 2, size=64), factor, np.float32, ".tif")
    data = build(root)
    paths = [record.path for record in (*data.train_set().records, *data.val_set().records)]
    values = np.stack([np.asarray(Image.open(path)) for path in paths])
    assert data.image_range == pytest.approx(expected or (values.min(), values.max()))
    images = [data.val_set()[(0, index)].image for index in range(2)]
    assert max(int(image.max()) for image in images) > 200
    assert main(["data", str(root)]) == 0


def test_eight_bits_have_no_range(tmp_path: Path) -> None:
    make_coco(tmp_path, coco_content([annotation(n, n) for n in range(1, 6)], num_images=5))
    assert open_dataset(tmp_path).image_range is None
    assert build(tmp_path).image_range is None


def test_a_run_keeps_the_range_and_segments_with_it(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pixels.announce_range.cache_clear()
    pixels._announce.cache_clear()
    assert main(["train", str(shapes), "--out", str(tmp_path / "run"), *TINY]) == 0
    assert caplog.text.count("scaled from 0..4095 to 0..255") == caplog.text.count("scaled") == 1
    for name in ("detector", "masks-5"):
        saved = read_checkpoint(tmp_path / "run" / name / "final.ckpt")["hyper_parameters"]
        assert tuple(saved["image_range"]) == (0, 4095)
    checkpoint = tmp_path / "run" / "masks-5" / "final.ckpt"
    segmenter = load(checkpoint)
    capfd.readouterr()
    assert segmenter.image_range == ImageRange(0, 4095)
    values = np.full((40, 50), 1024, np.uint16)
    assert (segmenter.segment(values).image == 64).all()
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (segmenter.segment(tmp_path / "a.png").image == 64).all()
    assert (
        main(["segment", str(tmp_path / "a.png"), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "o")]) == 0
    )
    assert capfd.readouterr().err.count("scaled from 0..4095 to 0..255") == 1
    assert json.loads((tmp_path / "o" / "predictions.json").read_text())["images"][0]["file_name"] == "a.png"


@pytest.mark.parametrize("task", ["DetectionTask", "InstanceTask"])
def test_the_range_is_linked_to_the_task_of_fit(shapes: Path, tmp_path: Path, task: str) -> None:
    prefix = "--model.init_args" if task == "DetectionTask" else "--model.init_args.network"
    command = ["fit", "--model", task, f"{prefix}.detector", "ssd_tiny", "--data.data_root", str(shapes)]
    command += ["--data.image_size", "64", "--data.batch_size", "4", "--data.supervision", "masks"]
    command += ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1"]
    command += ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false"]
    command += ["--trainer.enable_progress_bar", "false"]
    assert main(command) == 0
    checkpoint = max(tmp_path.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert tuple(read_checkpoint(checkpoint)["hyper_parameters"]["image_range"]) == (0, 4095)
    assert main(["validate", *command[1:], "--ckpt_path", str(checkpoint)]) == 0
