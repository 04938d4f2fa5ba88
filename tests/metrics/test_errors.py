"""The sorting of errors on hand-made images whose answers are known."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from dasnet_lightning.metrics.errors import ERRORS, ErrorLog, JudgedImage, sort_outcomes, summarize_errors
from dasnet_lightning.rle import encode_mask
from dasnet_lightning.types import Detections, GroundTruth, Prediction, Target

SIZE = (20, 40)
CAT, DOG = 1, 2
LEFT, RIGHT, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (30, 10, 40, 20)


def fill(box) -> bytes:
    mask = np.zeros(SIZE, dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return encode_mask(mask)


def judged(objects, found, missing=(), ignored=()) -> JudgedImage:
    """An image of (label, box) objects and (label, score, box, box of the mask) detections."""
    return JudgedImage(
        size=SIZE,
        labels=np.array([label for label, _ in objects], dtype=np.int64),
        boxes=np.array([box for _, box in objects], dtype=float).reshape(-1, 4),
        masks=tuple(None if i in missing else fill(box) for i, (_, box) in enumerate(objects)),
        ignored=np.array([i in ignored for i in range(len(objects))], dtype=bool),
        detected_labels=np.array([item[0] for item in found], dtype=np.int64),
        detected_boxes=np.array([item[2] for item in found], dtype=float).reshape(-1, 4),
        detected_masks=tuple(fill(item[-1]) for item in found),
        scores=np.array([item[1] for item in found], dtype=float),
    )


THIN = (0, 0, 10, 4)  # 4 of 10 rows: a mask IoU of 0.4 with LEFT
CASES = {
    "right": (judged([(CAT, LEFT)], [(CAT, 0.9, LEFT)]), ["right"]),
    "half a box fits": (judged([(CAT, LEFT)], [(CAT, 0.9, (0, 0, 10, 5))]), ["right"]),
    "missed": (judged([(CAT, LEFT)], []), ["missed"]),
    "confused": (judged([(CAT, LEFT)], [(DOG, 0.9, LEFT)]), ["confused"]),
    "duplicate": (judged([(CAT, LEFT)], [(CAT, 0.5, LEFT), (CAT, 0.9, LEFT)]), ["right", "duplicate"]),
    "also as a dog": (judged([(CAT, LEFT)], [(DOG, 0.9, LEFT), (CAT, 0.5, LEFT)]), ["confused", "right"]),
    "background": (judged([(CAT, LEFT)], [(CAT, 0.9, LEFT), (CAT, 0.8, FAR)]), ["right", "background"]),
    "a bad box": (judged([(CAT, LEFT)], [(CAT, 0.9, (0, 0, 10, 4))]), ["background", "missed"]),
    "mask error": (judged([(CAT, LEFT)], [(CAT, 0.9, LEFT, THIN)]), ["mask_error"]),
    "no true mask": (judged([(CAT, LEFT)], [(CAT, 0.9, LEFT, THIN)], missing=[0]), ["right"]),
    "ignored": (judged([(CAT, LEFT)], [(CAT, 0.9, (0, 0, 8, 8))], ignored=[0]), ["ignored"]),
    "ignored, of another class": (judged([(CAT, LEFT)], [(DOG, 0.9, LEFT)], ignored=[0]), ["background"]),
    "nothing": (judged([], []), []),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_is_recognized(name):
    image, kinds = CASES[name]
    assert [outcome.kind for outcome in sort_outcomes(image)] == kinds


def test_two_objects_take_the_detections_that_fit_them_best():
    near = (1, 0, 11, 10)
    image = judged([(CAT, LEFT), (CAT, near)], [(CAT, 0.9, near), (CAT, 0.8, LEFT)])
    assert [(item.kind, item.object_index) for item in sort_outcomes(image)] == [("right", 1), ("right", 0)]


def test_counts_pairs_and_the_worst_of_each_kind():
    images = {
        "a": judged([(CAT, LEFT), (DOG, RIGHT)], [(DOG, 0.9, LEFT), (DOG, 0.7, LEFT), (CAT, 0.6, FAR)]),
        "b": judged([(CAT, (0, 0, 40, 20))], []),
        "c": judged([(CAT, LEFT)], [(CAT, 0.9, LEFT, THIN)]),
        "d": judged([(CAT, LEFT)], [(CAT, 0.9, LEFT, (0, 0, 10, 1))]),
    }
    summary = summarize_errors(images)
    assert summary["counts"] == {
        "objects": 5, "right": 0, "missed": 2, "confused": 2, "duplicate": 0, "background": 1, "mask_error": 2,
    }  # fmt: skip
    assert summary["pairs"] == [[0, CAT, 1], [CAT, 0, 1], [CAT, CAT, 2], [CAT, DOG, 2], [DOG, 0, 1]]
    worst = {kind: [item["image_id"] for item in items] for kind, items in summary["worst"].items()}
    assert worst == {
        "missed": ["b", "a"],
        "confused": ["a"],
        "duplicate": [],
        "background": ["a"],
        "mask_error": ["d", "c"],
    }
    assert summary["worst"]["confused"][0]["score"] == 0.9
    assert summary["worst"]["mask_error"][0]["mask_iou"] == pytest.approx(0.1)
    assert json.loads(json.dumps(summary)) == summary


def test_the_log_scales_boxes_and_leaves_out_void_pixels_and_low_scores():
    truth = GroundTruth(torch.zeros(SIZE, dtype=torch.int16), (fill(LEFT),), fill((20, 0, 40, 20)))
    target = Target(
        boxes=torch.tensor([LEFT]) * 2.0,  # the input is twice as large as the image
        labels=torch.tensor([CAT]),
        has_mask=torch.tensor([True]),
        ignore=torch.tensor([False]),
        truth=truth,
    )
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, :10, :10] = masks[1, :10, 20:30] = masks[2, 10:, :10] = True
    boxes = torch.tensor([LEFT, RIGHT, (0, 10, 10, 20)]) * 2.0
    scores = torch.tensor([0.9, 0.8, 0.2])
    prediction = Prediction(
        Detections(boxes, torch.tensor([CAT] * 3), scores), masks, torch.zeros(SIZE, dtype=torch.int64)
    )
    log = ErrorLog()
    for _ in range(2):  # a repeated image counts once
        log.update(["x"], [prediction], [scores >= 0.5], [target], (40, 80))
    counts = Counter(log.compute()["counts"])
    assert counts["objects"] == counts["right"] == 1
    assert not any(counts[kind] for kind in ERRORS)
    log.reset()
    assert log.compute()["counts"]["objects"] == 0
