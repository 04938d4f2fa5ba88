"""The built-in evaluation against pycocotools and faster-coco-eval: the same figures, whatever the scenes hold."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from metric_scenes import INPUT_SIZE, prediction_of, random_image, target_of

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.metrics.box import BoxAP
from dasnet_lightning.metrics.coco import CocoAP, evaluate_coco
from dasnet_lightning.metrics.coco_evaluators import run_evaluator
from dasnet_lightning.metrics.instance import InstanceAP
from dasnet_lightning.metrics.matching import EvaluatedImage, IoUType, Shapes
from dasnet_lightning.rle import encode
from dasnet_lightning.types import Detections, Target

NAMES = ("background", "a", "b", "c", "d", "e")
SIZE = (20, 28)
EVALUATORS = [
    "pycocotools",
    pytest.param(
        "faster_coco_eval",
        marks=pytest.mark.skipif(find_spec("faster_coco_eval") is None, reason="the extra `eval` is not installed"),
    ),
]


def shapes_of(boxes: np.ndarray, iou_type: IoUType) -> Shapes:
    """Whole-numbered boxes as they are, or filled: overlaps repeat, and some lie exactly at a threshold."""
    if iou_type == "bbox":
        return boxes.astype(np.float64)
    masks = np.zeros((len(boxes), *SIZE), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return tuple(encode(masks))


def random_scene(rng: np.random.Generator, iou_type: IoUType, most: int) -> EvaluatedImage:
    """Up to 6 objects of classes a, b and c, some of a and b and all of c crowds; up to `most` detections of classes a to
    d, on objects, beside them, or empty, with 6 different scores."""
    count, found = int(rng.integers(0, 7)), int(rng.integers(0, most + 1))
    corners = rng.integers(0, (14, 8), (count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(3, 12, (count, 2))], axis=1)
    labels = rng.integers(1, 4, count)
    near = rng.integers(0, count, found) if count else np.zeros(0, int)
    placed = boxes[near] + rng.integers(-1, 2, (len(near), 4)) * (rng.random((len(near), 4)) < 0.4)
    placed[rng.random(len(near)) < 0.05] = 0  # empty
    if not count:
        placed = np.tile([2, 2, 9, 9], (found, 1))
    given = labels[near] if count else np.ones(found, np.int64)
    return EvaluatedImage(
        size=SIZE,
        labels=labels,
        shapes=shapes_of(boxes, iou_type),
        ignored=(rng.random(count) < 0.2) | (labels == 3),
        detected_labels=np.where(rng.random(found) < 0.8, given, rng.integers(1, 5, found)),
        detected_scores=rng.integers(1, 7, found) / 6,
        detected_shapes=shapes_of(np.maximum(placed, 0), iou_type),
    )


def random_sets(iou_type: IoUType, sets: int) -> list[dict[str, EvaluatedImage]]:
    rng = np.random.default_rng(7)
    counts = [12] * (sets - 2) + [300] * 2  # the last have images with more than 100 detections of a class
    return [{f"{k}": random_scene(rng, iou_type, most) for k in range(int(rng.integers(1, 7)))} for most in counts]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_same_figures(evaluator: str, iou_type: IoUType) -> None:
    seen, most, absent = [], 0, 0
    for scenes in random_sets(iou_type, 100):
        expected = evaluate_coco(scenes, iou_type, NAMES, evaluator)
        assert evaluate_coco(scenes, iou_type, NAMES) == pytest.approx(expected, abs=1e-12)
        assert run_evaluator({}, iou_type, evaluator) == {}
        seen.append(expected["ap"])
        most = max(most, *(int(np.bincount(scene.detected_labels).max(initial=0)) for scene in scenes.values()))
        absent += "ap/a" not in expected
        assert not {"ap/c", "ap/d", "ap/e"} & set(expected)
    assert most > 100
    assert absent
    assert 0.1 < np.mean(seen) < 0.9
    assert len(set(seen)) > 70


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_boxes_turned_inside_out_are_left_out(evaluator: str) -> None:
    """Such a detection cannot match; COCO's range of areas excuses it, but it takes one of the 100 places."""
    box, none = torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(1, dtype=torch.bool)
    inverted = torch.tensor([[30.0, 0, 20, 10]])
    target = Target(torch.cat([box, inverted]), torch.tensor([1, 1]), none.repeat(2), none.repeat(2))
    for count, expected in ((1, 1.0), (99, 1.0), (100, 0.0)):
        scores = torch.linspace(0.9, 0.1, count + 1)
        found = Detections(
            torch.cat([inverted.expand(count, 4), box]), torch.ones(count + 1, dtype=torch.int64), scores
        )
        for metric in (BoxAP(), BoxAP(evaluator)):
            metric.update(["x"], [found], [target])
            assert metric.compute()["ap50"] == pytest.approx(expected)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_mask_figures_go_the_same_way(evaluator: str) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = InstanceAP(), InstanceAP(evaluator)
    for number in range(6):
        image = random_image(rng)
        for metric in (ours, theirs):
            metric.update([str(number)], [prediction_of(image)], [target_of(image)], INPUT_SIZE)
    expected = dict(theirs.compute(NAMES))
    assert dict(ours.compute(NAMES)) == pytest.approx(expected, abs=1e-12)
    assert expected["coco_ap"] > 0.05


def test_an_unknown_evaluator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no evaluator 'fast': choose one of built-in, pycocotools, faster_coco_eval"):
        CocoAP("bbox", "fast")
    monkeypatch.setattr("dasnet_lightning.metrics.coco_evaluators.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'dasnet-lightning\[eval\]'"):
        InstanceAP("faster_coco_eval")
