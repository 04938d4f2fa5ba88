"""COCO's figures against pycocotools called on JSON files, and against torchmetrics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metric_scenes import INPUT_SIZE, NAMES, SIZE, prediction_of, random_image, rectangle, target_of
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

from dasnet_lightning.metrics.box import BoxAP
from dasnet_lightning.metrics.instance import InstanceAP
from dasnet_lightning.types import Detections, Target


def run_pycocotools(folder: Path, truth: list[dict], found: list[dict], images: int, kind: str) -> dict[str, float]:
    """Write both files, read them as anyone would, and take the figures; by class through one class alone."""
    content: dict[str, Any] = {
        "images": [{"id": k, "height": SIZE[0], "width": SIZE[1]} for k in range(images)],
        "categories": [{"id": label, "name": NAMES[label]} for label in (1, 2, 3)],
        "annotations": [row | {"id": k + 1} for k, row in enumerate(truth)],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "found.json").write_text(json.dumps(found))
    coco = COCO(str(folder / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(folder / "found.json")), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = dict(zip(("ap", "ap50", "ap75"), evaluation.stats[:3].tolist(), strict=True))
    for label in (1, 2, 3):
        evaluation.params.catIds = [label]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        if evaluation.stats[1] > -1:
            for name, value in zip(("ap", "ap50", "ap75"), evaluation.stats, strict=False):
                values[f"{name}/{NAMES[label]}"] = float(value)
    return values


def row(mask: np.ndarray) -> dict[str, Any]:
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    shape = {"size": list(SIZE), "counts": runs["counts"].decode("ascii")}
    return {"segmentation": shape, "area": int(mask.sum())}


@pytest.mark.parametrize("seed", range(3))
def test_mask_ap_is_that_of_pycocotools(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [random_image(rng) for _ in range(12)]
    metric, truth, found = InstanceAP(), [], []
    for number, image in enumerate(images):
        metric.update([f"{number:02}"], [prediction_of(image)], [target_of(image)], INPUT_SIZE)
        for k, label in enumerate(image.labels.tolist()):
            mask = image.masks[k] if image.has_mask[k] else rectangle(*image.boxes[k])
            crowd = int(image.crowd[k] or not image.has_mask[k])
            box = [0, 0, 1, 1]  # not used for masks
            truth.append({"image_id": number, "category_id": label, "iscrowd": crowd, "bbox": box, **row(mask)})
        for k, label in enumerate(image.detected_labels.tolist()):
            mask = image.detected_masks[k]
            if (mask & image.void).sum() * 2 <= mask.sum():
                score = float(np.float32(image.detected_scores[k]))
                found.append({"image_id": number, "category_id": label, "score": score, **row(mask & ~image.void)})
    expected = run_pycocotools(tmp_path, truth, found, len(images), "segm")
    values = metric.compute(NAMES)
    measured = {name.removeprefix("coco_"): value for name, value in values.items() if name.startswith("coco_")}
    assert measured == pytest.approx(expected, abs=1e-12)
    assert 0.05 < measured["ap"] < measured["ap50"] < 0.95


def random_boxes(rng: np.random.Generator, images: int) -> list[tuple[Detections, Target]]:
    pairs = []
    for _ in range(images):
        count, wrong = int(rng.integers(0, 6)), int(rng.integers(0, 4))
        start = rng.uniform(0, 60, (count, 2))
        boxes = np.concatenate([start, start + rng.uniform(5, 40, (count, 2))], axis=1)
        labels = rng.integers(1, 4, count)
        stray = np.sort(rng.uniform(0, 99, (wrong, 2, 2)), axis=1).reshape(-1, 4)
        found = np.concatenate([boxes + rng.normal(0, 1.5, boxes.shape), boxes + rng.normal(0, 4, boxes.shape), stray])
        detected_labels = np.concatenate([labels, labels, rng.integers(1, 4, wrong)])
        scores = torch.tensor(rng.uniform(0, 1, len(found)), dtype=torch.float32)
        detections = Detections(torch.tensor(found, dtype=torch.float32), torch.tensor(detected_labels), scores)
        known, crowd = torch.zeros(count, dtype=torch.bool), torch.tensor(rng.random(count) < 0.15)
        target = Target(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), known, crowd)
        pairs.append((detections, target))
    return pairs


@pytest.mark.parametrize("seed", range(3))
def test_box_ap_is_that_of_pycocotools_and_of_torchmetrics(tmp_path: Path, seed: int) -> None:
    pairs = random_boxes(np.random.default_rng(seed), 15)
    metric = BoxAP()
    metric.update([f"{number:02}" for number in range(15)], *zip(*pairs, strict=True))
    values = metric.compute(NAMES)

    def rows(number: int, boxes: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
        places = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.double().tolist()]
        keys = [{"image_id": number, "category_id": label} for label in labels.tolist()]
        return [key | {"bbox": box, "area": box[2] * box[3]} for key, box in zip(keys, places, strict=True)]

    truth, found = [], []
    for number, (detections, target) in enumerate(pairs):
        crowd = [{"iscrowd": int(flag)} for flag in target.ignore]
        truth += [a | b for a, b in zip(rows(number, target.boxes, target.labels), crowd, strict=True)]
        scores = [{"score": score} for score in detections.scores.double().tolist()]
        found += [a | b for a, b in zip(rows(number, detections.boxes, detections.labels), scores, strict=True)]
    assert dict(values) == pytest.approx(run_pycocotools(tmp_path, truth, found, 15, "bbox"), abs=1e-12)

    other = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
    other.update(
        [{"boxes": d.boxes, "scores": d.scores, "labels": d.labels} for d, _ in pairs],
        [{"boxes": t.boxes, "labels": t.labels, "iscrowd": t.ignore.long()} for _, t in pairs],
    )
    theirs = other.compute()
    assert [values["ap"], values["ap50"], values["ap75"]] == pytest.approx(
        [float(theirs["map"]), float(theirs["map_50"]), float(theirs["map_75"])], abs=1e-6
    )
    assert 0.05 < values["ap"] < 0.95


def test_at_most_100_detections_of_a_class_in_an_image_count() -> None:
    box, far = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[50.0, 50, 60, 60]])
    target = Target(box, torch.tensor([1]), torch.tensor([False]), torch.tensor([False]))
    for wrong, expected in ((99, 1 / 100), (100, 0.0)):
        scores = torch.linspace(0.9, 0.1, wrong + 1)
        found = Detections(torch.cat([far.expand(wrong, 4), box]), torch.ones(wrong + 1, dtype=torch.int64), scores)
        metric = BoxAP()
        metric.update(["x"], [found], [target])
        assert metric.compute()["ap50"] == pytest.approx(expected)


def test_nothing_annotated_is_minus_one(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), *[torch.zeros(0, dtype=torch.bool)] * 2)
    found = Detections(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1]), torch.tensor([0.9]))
    metric = BoxAP()
    assert metric.compute(NAMES) == {"ap": -1.0, "ap50": -1.0, "ap75": -1.0}
    metric.update(["x"], [found], [nothing])
    assert metric.compute(NAMES) == {"ap": -1.0, "ap50": -1.0, "ap75": -1.0}
    assert capsys.readouterr().out == ""  # pycocotools is quiet
