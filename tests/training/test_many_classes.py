"""More classes than a byte holds, and classes named like the background and the void: trained, evaluated and segmented."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ImageDraw import Draw

import dasnet_lightning
from dasnet_lightning.data.sources.open import open_dataset
from dasnet_lightning.types import VOID

COUNT = 300
NAMES = [f"part-{number}" for number in range(COUNT)]
CYCLE = (254, 0, 1, 255, 299, 253, 2)  # categories of the objects; label 255 comes first
NAMES[0], NAMES[1], NAMES[254] = "background", "void", "255"  # the last has label 255


def write_split(root: Path, split: str, images: int, objects: int) -> None:
    generator = np.random.default_rng(len(split))
    rows, pictures = [], []
    for number in range(images):
        pixels = generator.integers(80, 120, (64, 64, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        for place in range(objects):
            x, y = 4 + 30 * (place % 2), 4 + 30 * (place // 2)
            Draw(picture).rectangle((x, y, x + 23, y + 23), fill=(220, 40 + 40 * place, 40))
            polygon = [x, y, x + 24, y, x + 24, y + 24, x, y + 24]
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": CYCLE[len(rows) % len(CYCLE)], "iscrowd": 0,
                         "bbox": [x, y, 24, 24], "area": 576, "segmentation": [polygon]})  # fmt: skip
        picture.save(root / "images" / f"{split}{number}.png")
        pictures.append({"id": number, "file_name": f"{split}{number}.png", "width": 64, "height": 64})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    content = {"images": pictures, "annotations": rows, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    for split, images in (("train", 8), ("val", 4), ("test", 3)):
        write_split(root, split, images, 4)
    return root


def test_names_and_labels_of_the_data_set(root: Path) -> None:
    data = open_dataset(root)
    assert len(data.train.class_names) == COUNT + 1
    assert data.train.class_names[:3] == ("background", "background (class)", "void")
    assert data.train.class_names[255] == "255"
    assert {item.label for record in data.train.records for item in record.objects} >= {254, 255, 256}
    assert VOID < 0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_three_hundred_classes_go_the_whole_way(root: Path, tmp_path: Path, task: str) -> None:
    result = dasnet_lightning.train(
        root, tmp_path / "run", task=task, mask_budgets=("1/class",), detector="ssd_tiny", accelerator="cpu",
        detector_steps=3, steps=3, detector_batch_size=2, batch_size=2, num_workers=0,
    )  # fmt: skip
    (budget,) = result.budgets
    assert budget.metrics["val/iou_ground_truth_boxes/255"] > 0  # a class like any other, not the void of VOC
    assert "val/iou_ground_truth_boxes/void" in budget.metrics
    evaluation = dasnet_lightning.evaluate(root, budget.checkpoint, num_workers=0, accelerator="cpu")
    assert (evaluation.split, evaluation.labels["all"]["boxes"]) == ("test", 12)
    rectangle = evaluation.floors["rectangle"]
    assert rectangle["miou_ground_truth_boxes"] == rectangle["iou_ground_truth_boxes/255"] == 1
    segmenter = dasnet_lightning.load(budget.checkpoint)
    boxes, labels = [[4, 4, 28, 28], [34, 4, 58, 28]], ["255", "background (class)"]
    segmentation = segmenter.segment(root / "images" / "test0.png", boxes=boxes, labels=labels)
    assert segmentation.labels.tolist() == [255, 1]
    assert {int(value) for value in segmentation.semantic.unique()} >= {1, 255}
    assert [row["category_id"] for row in segmentation.to_coco(1)] == [254, 0]
    assert segmentation.draw(semantic=True).width >= 64
