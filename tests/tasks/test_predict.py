"""`Trainer.predict` with the tasks and the data module: a split, a folder, and the same objects as `Segmenter.segment`."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.resize import resize_image
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.errors import ConfigError, DataError
from dasnet_lightning.inference.segmenter import Segmenter
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.tasks.config import NetworkConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.prediction import ImagePrediction
from dasnet_lightning.tasks.semantic import SemanticTask

NAMES = ("background", "circle", "square", "triangle")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("data") / "shapes", 2, 3, size=64)


def predict(task: L.LightningModule, root: Path, predict_on: str) -> list[ImagePrediction]:
    data = MixedSupervisionDataModule(str(root), image_size=128, batch_size=2, predict_on=predict_on)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    return [item for batch in trainer.predict(task, data) for item in batch]


@pytest.mark.parametrize("kind", ["instance", "semantic"])
def test_a_folder_is_predicted_as_the_segmenter_does(kind: str, root: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, size in (("b.png", (50, 90)), ("sub/a.jpg", (64, 64)), ("c.png", (200, 70))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    torch.manual_seed(3)
    options = InstanceOptions if kind == "instance" else SemanticOptions
    limit = {"max_detections": 4} if kind == "instance" else {"max_classes": 2}
    network = NetworkConfig("ssd_tiny", decoder="zoom")
    build = InstanceTask if kind == "instance" else SemanticTask
    task = build(len(NAMES), NAMES, network=network).eval()
    seen = torch.from_numpy(resize_image(read_image(tmp_path / "b.png"), (128, 128))).permute(2, 0, 1)[None] / 255
    found = task.model.detector.detect(task.model.detector.features(seen))[0]
    inference = task.inference = options(score_threshold=float(found.scores[6]), **limit)
    found = predict(task, root, str(tmp_path))
    assert [item.image_id for item in found] == ["b.png", "c.png", "sub/a.jpg"]
    segmenter = Segmenter(task.model, NAMES, inference)
    assert sum(len(item.scores) for item in found) > 3
    for item in found:
        alone = segmenter.segment(tmp_path / item.image_id)
        torch.testing.assert_close(item.boxes, alone.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(item.scores, alone.scores, rtol=0, atol=1e-5)
        assert torch.equal(item.labels, alone.labels)
        assert torch.equal(item.masks, alone.masks)
        assert torch.equal(item.semantic, alone.semantic)


def test_a_detector_predicts_boxes_of_a_split(root: Path, tmp_path: Path) -> None:
    task = DetectionTask(len(NAMES), NAMES, detector="ssd_tiny")
    found = predict(task, root, "val")
    assert len(found) == 3
    assert all((item.boxes <= 64).all() and item.windows is None for item in found)
    with pytest.raises(ValueError, match="a detector predicts no masks"):
        _ = found[0].masks
    with pytest.raises(ConfigError, match="no test split"):
        predict(task, root, "test")
    with pytest.raises(DataError, match="no image found"):
        predict(task, root, str(tmp_path))
