"""Sorts detections and objects into kinds of errors, as the error page of a report shows them.

Detections are assigned to objects by their boxes, best score first, at a box IoU of 0.5. Rules:

* A detection whose box overlaps a free object of its class is `right`, or a `mask_error` if the IoU of the masks is below
  0.5. An object without a mask says nothing about the mask.
* A remaining detection is judged by the object that it overlaps most: `duplicate` if the classes agree, else `confused`.
* A detection that overlaps no object by half is `background`, unless half of it lies in an ignored object of its class or
  in void pixels. A box that fits its object badly is `background` too.
* An object that no detection of any class overlaps by half is `missed`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64
from pycocotools import mask as coco_mask
from torch import Tensor

from dasnet_lightning.distributed import evaluate_gathered
from dasnet_lightning.functional.boxes import restore_boxes
from dasnet_lightning.metrics.instance import remove_void
from dasnet_lightning.metrics.matching import as_array
from dasnet_lightning.metrics.voc_ap import IGNORED_OVERLAP
from dasnet_lightning.rle import as_coco, encode
from dasnet_lightning.types import GroundTruth, Prediction, Target

ERRORS = ("missed", "confused", "duplicate", "background", "mask_error")
BOX_IOU = 0.5
MASK_IOU = 0.5
WORST = 6  # pictures of each kind


@dataclass(frozen=True, eq=False)
class JudgedImage:
    """Objects and detections of one image, in its own pixels.

    Attributes:
        size: (height, width).
        labels: classes of the objects.
        boxes: boxes of the objects, xyxy.
        masks: run-length counts of the objects, None without a mask.
        ignored: objects that do not count.
        detected_labels: classes of the detections.
        detected_boxes: boxes of the detections, xyxy.
        detected_masks: run-length counts of the detections.
        scores: scores of the detections, in any order.
    """

    size: tuple[int, int]
    labels: Int64[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    masks: tuple[bytes | None, ...]
    ignored: Bool[np.ndarray, " n"]
    detected_labels: Int64[np.ndarray, " m"]
    detected_boxes: Float[np.ndarray, "m 4"]
    detected_masks: tuple[bytes, ...]
    scores: Float[np.ndarray, " m"]


@dataclass(frozen=True)
class Outcome:
    """What became of a detection, or of an object that no detection overlaps.

    Attributes:
        kind: "right", "ignored" or one of `ERRORS`.
        object_index: index of the object in its image, None for a detection in the background.
        detection_index: index of the detection in its image, None for a missed object.
        mask_iou: IoU of the masks where the boxes agree, None if it was not measured.
    """

    kind: str
    object_index: int | None = None
    detection_index: int | None = None
    mask_iou: float | None = None


def sort_outcomes(image: JudgedImage) -> list[Outcome]:
    """Sort all detections of an image, best score first, and then its missed objects."""
    iou = _box_overlaps(image)
    counted = ~image.ignored
    order = np.argsort(-image.scores, kind="stable").tolist()
    object_of: dict[int, int] = {}
    free = counted.copy()
    for row in order:
        candidates = np.where(free & (image.labels == image.detected_labels[row]), iou[row], 0.0)
        if candidates.max(initial=0.0) >= BOX_IOU:
            object_of[row] = int(candidates.argmax())
            free[object_of[row]] = False
    outcomes = [
        _judge_matched(image, row, object_of[row]) if row in object_of else _judge_other(image, row, iou[row])
        for row in order
    ]
    seen = {outcome.object_index for outcome in outcomes}
    missed = [index for index in np.flatnonzero(counted).tolist() if index not in seen]
    return outcomes + [Outcome("missed", object_index=index) for index in missed]


def _box_overlaps(image: JudgedImage) -> Float[np.ndarray, "m n"]:
    """Return the box IoU of detections and objects; for an ignored object, the share of the detection inside it."""
    if not len(image.labels) or not len(image.scores):
        return np.zeros((len(image.scores), len(image.labels)))
    sides = [
        np.concatenate([item[:, :2], item[:, 2:] - item[:, :2]], 1) for item in (image.detected_boxes, image.boxes)
    ]
    detected, annotated = (np.array(item, dtype=np.float64, order="C") for item in sides)
    return np.asarray(coco_mask.iou(detected, annotated, image.ignored.tolist()))


def _judge_matched(image: JudgedImage, row: int, index: int) -> Outcome:
    true_mask = image.masks[index]
    if true_mask is None:
        return Outcome("right", index, row)
    pair = [as_coco([mask], image.size) for mask in (image.detected_masks[row], true_mask)]
    mask_iou = float(coco_mask.iou(*pair, [0])[0, 0])
    return Outcome("right" if mask_iou >= MASK_IOU else "mask_error", index, row, mask_iou)


def _judge_other(image: JudgedImage, row: int, iou: Float[np.ndarray, " n"]) -> Outcome:
    same = image.labels == image.detected_labels[row]
    overlaps = np.where(image.ignored, 0.0, iou)
    best = overlaps.max(initial=0.0)
    if best >= BOX_IOU:
        closest = np.flatnonzero(overlaps == best)
        agreeing = closest[same[closest]]
        return (
            Outcome("duplicate", int(agreeing[0]), row) if len(agreeing) else Outcome("confused", int(closest[0]), row)
        )
    in_ignored = np.where(image.ignored & same, iou, 0.0).max(initial=0.0)
    return Outcome("ignored" if in_ignored >= IGNORED_OVERLAP else "background", detection_index=row)


class ErrorLog:
    """Metric that accumulates predictions and ground truth and sorts the errors over all ranks.

    A repeated image id, from a padded sampler, counts once. All ranks must call `compute` and get the same values.
    """

    def __init__(self) -> None:
        self._images: dict[str, JudgedImage] = {}

    def update(
        self,
        image_ids: Sequence[str],
        predictions: Sequence[Prediction],
        shown: Sequence[Bool[Tensor, " n"]],
        targets: Sequence[Target],
        input_size: tuple[int, int],
    ) -> None:
        """Add images; an image whose target has no `truth` is skipped.

        Args:
            image_ids: the id of each image.
            predictions: predictions at the size of the original images.
            shown: which detections of each image reach the score threshold; the others are left out.
            targets: targets with boxes in pixels of the network input.
            input_size: (height, width) of the network input.
        """
        for image_id, prediction, selected, target in zip(image_ids, predictions, shown, targets, strict=True):
            if target.truth is not None and image_id not in self._images:
                self._images[image_id] = _judged_image(prediction, selected, target, target.truth, input_size)

    def compute(self) -> dict[str, Any]:
        """Return the summary of all images, see `summarize_errors`."""
        return evaluate_gathered(self._images, summarize_errors)

    def reset(self) -> None:
        """Forget all images."""
        self._images.clear()


def _judged_image(
    prediction: Prediction,
    shown: Bool[Tensor, " n"],
    target: Target,
    truth: GroundTruth,
    input_size: tuple[int, int],
) -> JudgedImage:
    size = (truth.semantic.shape[0], truth.semantic.shape[1])
    found = prediction.detections
    masks, counted = remove_void(encode(prediction.masks[shown]), truth.void, size)
    return JudgedImage(
        size=size,
        labels=as_array(target.labels),
        boxes=as_array(restore_boxes(target.boxes.double(), input_size, size)),
        masks=tuple(truth.masks),
        ignored=as_array(target.ignore),
        detected_labels=as_array(found.labels[shown])[counted],
        detected_boxes=as_array(restore_boxes(found.boxes[shown].double(), input_size, size))[counted],
        detected_masks=tuple(compress(masks, counted)),
        scores=as_array(found.scores[shown].double())[counted],
    )


def summarize_errors(images: Mapping[str, JudgedImage]) -> dict[str, Any]:
    """Count the outcomes of all images and keep the worst ones of each kind.

    Returns:
        A dict that JSON can hold. `counts`: objects, `right` and each of `ERRORS`. `pairs`: [true label, detected label,
        count], 0 as the detected label of a missed object and as the true label of a detection in the background.
        `worst`: for each kind up to `WORST` records of different images, see `_describe`.
    """
    counts: Counter[str] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    found: dict[str, list[tuple[float, dict[str, Any]]]] = {kind: [] for kind in ERRORS}
    for image_id, image in images.items():
        counts["objects"] += int((~image.ignored).sum())
        for outcome in sort_outcomes(image):
            counts[outcome.kind] += 1
            true_label = 0 if outcome.object_index is None else int(image.labels[outcome.object_index])
            label = 0 if outcome.detection_index is None else int(image.detected_labels[outcome.detection_index])
            if outcome.kind not in ("ignored", "duplicate"):
                pairs[true_label, label] += 1
            if outcome.kind in ERRORS:
                found[outcome.kind].append((_severity(image, outcome), _describe(image_id, image, outcome)))
    return {
        "counts": {kind: counts[kind] for kind in ("objects", "right", *ERRORS)},
        "pairs": [[*pair, count] for pair, count in sorted(pairs.items())],
        "worst": {kind: _worst(items) for kind, items in found.items()},
    }


def _severity(image: JudgedImage, outcome: Outcome) -> float:
    """Return how bad an error is: the area of a missed object, the mask IoU that is lacking, or else the score."""
    if outcome.detection_index is None:
        assert outcome.object_index is not None
        width, height = image.boxes[outcome.object_index, 2:] - image.boxes[outcome.object_index, :2]
        return float(width * height) / (image.size[0] * image.size[1])
    return float(image.scores[outcome.detection_index]) if outcome.mask_iou is None else -outcome.mask_iou


def _worst(items: Sequence[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    by_image: dict[str, dict[str, Any]] = {}
    for _, record in sorted(items, key=lambda item: -item[0]):
        by_image.setdefault(record["image_id"], record)
    return list(by_image.values())[:WORST]


def _describe(image_id: str, image: JudgedImage, outcome: Outcome) -> dict[str, Any]:
    """Return an error as a dict of JSON values: labels, boxes, masks as run-length counts, score and mask IoU."""
    index, row = outcome.object_index, outcome.detection_index
    true_mask = None if index is None else image.masks[index]
    return {
        "image_id": image_id,
        "size": list(image.size),
        "true_label": None if index is None else int(image.labels[index]),
        "true_box": None if index is None else image.boxes[index].tolist(),
        "true_mask": None if true_mask is None else true_mask.decode("ascii"),
        "label": None if row is None else int(image.detected_labels[row]),
        "box": None if row is None else image.detected_boxes[row].tolist(),
        "mask": None if row is None else image.detected_masks[row].decode("ascii"),
        "score": None if row is None else float(image.scores[row]),
        "mask_iou": outcome.mask_iou,
    }
