"""Measures of a method on the validation images, at the photographs' own resolution; unknown pixels do not count."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from harness import gmac, scatter_boxes

from dasnet_lightning.metrics.instance import InstanceAP
from dasnet_lightning.metrics.semantic import SemanticIoU
from dasnet_lightning.rle import decode
from dasnet_lightning.types import Detections, Prediction

from .data import Study
from .learner import PLAIN, Extras, Learner

KINDS = ("true", "jittered", "detected")
GROUPS = ("main", "all")
OBJECT_MEASURES = ("iou", "iou_low", "iou_high", "share50", "share75", "biou")
SET_MEASURES = ("apr50", "apr75", "ap", "ap_scored", "miou")
BOUNDARY_SHARE = 0.02  # of the diagonal of the image
RESAMPLES = 2000
COST_BOXES, COST_SIDE, COST_TURNS = 5, 0.4, 5

Values = dict[str, float]


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """Masks compared with those of their objects, one entry for each object of the validation set.

    Attributes:
        image: index of the image.
        label: class.
        iou: IoU of the masks.
        boundary: IoU of their boundaries.
    """

    image: np.ndarray
    label: np.ndarray
    iou: np.ndarray
    boundary: np.ndarray


def measure(
    learner: Learner, kind: str, extras: Extras = PLAIN, limit: int | None = None
) -> tuple[Values, ObjectScores | None]:
    """Measure a method with one kind of boxes.

    Args:
        learner: the method.
        kind: one of `KINDS`; detected boxes have no objects of their own, so that only the set is measured.
        extras: refinement at test time.
        limit: measure only so many images.

    Returns:
        The values by `group/measure`, and those of the objects.
    """
    study, val = learner.study, learner.study.val
    boxes = boxes_of(study, kind)
    plain, scored, classes = InstanceAP(), InstanceAP(), SemanticIoU(len(study.class_names))
    found: list[tuple[int, int, float, float]] = []
    for index in range(len(val) if limit is None else min(limit, len(val))):
        target, detections = val.targets[index], boxes(index)
        if target.truth is None:
            continue
        with torch.no_grad():
            prediction = learner.predict(index, detections, kind == "true", extras)
        classes.update(prediction.semantic, target.truth.semantic)
        if learner.semantic_only:
            continue
        update = ([val.records[index].image_id], [target], val.input_size)
        scored.update(update[0], [prediction], *update[1:])
        if kind != "detected":
            found += compare_objects(study, index, prediction)
            ones = replace(prediction.detections, scores=detections.scores)
            plain.update(update[0], [replace(prediction, detections=ones)], *update[1:])
    values = _class_map_values(study, classes)
    if learner.semantic_only:
        return values, None
    values |= _precision_values(study, scored if kind == "detected" else plain, scored)
    if kind == "detected":
        return values, None
    image, label, iou, boundary = (np.array(column) for column in zip(*found, strict=True))
    objects = ObjectScores(image, label, iou, boundary)
    for group, labels in _groups(study).items():
        values |= {f"{group}/{name}": value for name, value in object_values(objects, labels).items()}
    return values, objects


def boxes_of(study: Study, kind: str) -> Callable[[int], Detections]:
    """Return the function from the index of a validation image to its boxes."""
    if kind == "detected":
        assert study.detections is not None
        return study.detections.__getitem__
    return study.val.annotated if kind == "true" else study.val.jittered


def _groups(study: Study) -> dict[str, tuple[int, ...]]:
    return {"main": study.main, "all": tuple(range(1, len(study.class_names)))}


def _class_map_values(study: Study, classes: SemanticIoU) -> Values:
    by_class = classes.by_class(study.class_names)
    values = {}
    for group, labels in _groups(study).items():
        named = [by_class[f"iou/{study.class_names[label]}"] for label in (0, *labels)]
        values[f"{group}/miou"] = float(np.nanmean(named))
    return values


def _precision_values(study: Study, plain: InstanceAP, scored: InstanceAP) -> Values:
    computed, own = plain.compute(study.class_names), scored.compute(study.class_names)
    sources = {
        "apr50": (computed, "apr50_area"),
        "apr75": (computed, "apr75_area"),
        "ap": (computed, "coco_ap"),
        "ap_scored": (own, "coco_ap"),
    }
    values = {}
    for group, labels in _groups(study).items():
        for name, (results, key) in sources.items():
            named = [results.get(f"{key}/{study.class_names[label]}") for label in labels]
            values[f"{group}/{name}"] = float(np.mean([value for value in named if value is not None]))
    return values


def object_values(objects: ObjectScores, labels: Sequence[int]) -> Values:
    """Return the means over the objects of some classes; the interval comes from resampled images."""
    chosen = np.isin(objects.label, labels)
    if not chosen.any():
        return {}
    iou, boundary = objects.iou[chosen], objects.boundary[chosen]
    low, high = np.quantile(resample_means(objects.image[chosen], iou), (0.025, 0.975))
    means = (iou.mean(), low, high, (iou >= 0.5).mean(), (iou >= 0.75).mean(), boundary.mean())
    return dict(zip(OBJECT_MEASURES, map(float, means), strict=True))


def resample_means(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return means over the objects of resampled images."""
    _, group = np.unique(image, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    return sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)


def compare_objects(study: Study, index: int, prediction: Prediction) -> list[tuple[int, int, float, float]]:
    """Return (image, label, IoU, boundary IoU) of the objects with a mask; mask k is that of the k-th box."""
    target, size = study.val.targets[index], study.val.records[index].size
    truth = target.truth
    assert truth is not None
    known = np.ones(size, dtype=bool) if truth.void is None else ~decode([truth.void], size)[0]
    counted = torch.nonzero(~target.ignore)[:, 0].tolist()
    compared = []
    for mask, item in zip(prediction.masks.numpy(), counted, strict=True):
        counts = truth.masks[item]
        if counts is not None:
            true = decode([counts], size)[0]
            compared.append((index, int(target.labels[item]), *mask_ious(mask & known, true & known)))
    return compared


def mask_ious(mask: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Return the IoU of two masks, and that of their boundaries: the pixels within 2 % of the diagonal of their outline.

    Cheng et al., "Boundary IoU" (2021), with LVIS's width.
    """
    union = mask | true
    if not union.any():
        return 0.0, 0.0
    width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*mask.shape))))
    rows, columns = np.flatnonzero(union.any(axis=1)), np.flatnonzero(union.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mask, true = np.ascontiguousarray(mask[window]), np.ascontiguousarray(true[window])
    borders = [_boundary(each, width) for each in (mask, true)]
    return _iou(mask, true), _iou(*borders)


def _boundary(mask: np.ndarray, width: int) -> np.ndarray:
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (inner == 0)


def _iou(mask: np.ndarray, true: np.ndarray) -> float:
    union = np.count_nonzero(mask | true)
    return np.count_nonzero(mask & true) / union if union else 0.0


def measure_cost(learner: Learner, extras: Extras = PLAIN) -> Mapping[str, float]:
    """Return GMAC and milliseconds of a box beyond the encoder: those of an image with five boxes, divided by five."""
    val = learner.study.val
    placed = scatter_boxes(COST_BOXES, COST_SIDE, val.input_size[0])
    val.pixels(0)
    with torch.no_grad():
        operations, _ = gmac(lambda: learner.predict(0, placed, True, extras))
        times = []
        for _ in range(COST_TURNS):
            started = time.process_time()
            learner.predict(0, placed, True, extras)
            times.append(time.process_time() - started)
    return {"gmac_box": operations / COST_BOXES, "ms_box": 1000 * float(np.median(times)) / COST_BOXES}
