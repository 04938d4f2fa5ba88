"""mAP^r: average precision of instance masks after PASCAL VOC and SDS.

Detections are sorted by score over the whole set. Each is assigned to the object of its class and image with the highest
mask IoU, matched or not; COCO assigns the best unmatched object. The first detection of an object with an IoU at or above
the threshold is a true positive. All others are false positives: duplicates, and those below the threshold. A false
positive with at least half of its area in one ignored region of its class does not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from dasnet_lightning.metrics.matching import NOT_ANNOTATED, Comparison

THRESHOLDS = (0.5, 0.7, 0.75)
PROTOCOLS = ("area", "11point")
IGNORED_OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class RankedDetections:
    """Detections of one class over the whole set, sorted by descending score.

    Attributes:
        best: index of the assigned object, counted over the set, or -1 if the image has none.
        iou: mask IoU with the assigned object.
        ignored: whether the detection lies in an ignored region.
        num_objects: number of objects that count.
    """

    best: Int64[np.ndarray, " m"]
    iou: Float[np.ndarray, " m"]
    ignored: Bool[np.ndarray, " m"]
    num_objects: int


def class_region_ap(comparisons: Sequence[Comparison]) -> dict[str, float] | None:
    """Return `apr50_area`, `apr50_11point` and so on of one class in 0..1, or None if it has no object.

    The thresholds are 0.5, 0.7 and 0.75. Detections with equal scores keep the order of the images.
    """
    ranked = rank_detections(comparisons)
    if not ranked.num_objects:
        return None
    values = {}
    for threshold in THRESHOLDS:
        true_positive = find_true_positives(ranked, threshold)
        for protocol, average_precision in zip(PROTOCOLS, (area_ap, eleven_point_ap), strict=True):
            name = f"apr{round(100 * threshold)}_{protocol}"
            values[name] = average_precision(true_positive, ranked.num_objects)
    return values


def summarize_regions(
    class_values: Mapping[int, Mapping[str, float] | None], class_names: Sequence[str] = ()
) -> dict[str, float]:
    """Average the values of `class_region_ap` over the classes that have an object.

    Args:
        class_values: values by label, None for a class without an object.
        class_names: names of the labels, background first; a class without a name enters the means only.

    Returns:
        `apr50_area` and so on in 0..1, or -1 if no class has an object, and the same of each class as
        `apr50_area/<class>`.
    """
    annotated = {label: values for label, values in class_values.items() if values is not None}
    summary: dict[str, float] = {}
    for name in (f"apr{round(100 * threshold)}_{protocol}" for threshold in THRESHOLDS for protocol in PROTOCOLS):
        summary[name] = float(np.mean([values[name] for values in annotated.values()])) if annotated else NOT_ANNOTATED
        named = {label: values[name] for label, values in annotated.items() if label < len(class_names)}
        summary |= {f"{name}/{class_names[label]}": value for label, value in named.items()}
    return summary


def rank_detections(comparisons: Sequence[Comparison]) -> RankedDetections:
    """Sort the detections of a class over the whole set by score and assign each to an object."""
    starts = np.cumsum([0, *(comparison.iou.shape[1] for comparison in comparisons)])
    best = [
        start + comparison.iou.argmax(axis=1) if comparison.iou.shape[1] else np.full(len(comparison.iou), -1)
        for comparison, start in zip(comparisons, starts[:-1], strict=True)
    ]
    order = np.argsort(-np.concatenate([comparison.scores for comparison in comparisons]), kind="stable")
    return RankedDetections(
        best=np.concatenate(best)[order],
        iou=np.concatenate([comparison.iou.max(axis=1, initial=0.0) for comparison in comparisons])[order],
        ignored=np.concatenate([comparison.covered >= IGNORED_OVERLAP for comparison in comparisons])[order],
        num_objects=int(starts[-1]),
    )


def find_true_positives(ranked: RankedDetections, threshold: float) -> Bool[np.ndarray, " k"]:
    """Return which of the k detections that count are true positives, sorted by descending score."""
    candidates = np.flatnonzero((ranked.best >= 0) & (ranked.iou >= threshold))
    first_of_object = np.unique(ranked.best[candidates], return_index=True)[1]
    true_positive = np.zeros(len(ranked.best), dtype=bool)
    true_positive[candidates[first_of_object]] = True
    return np.asarray(true_positive[true_positive | ~ranked.ignored])


def area_ap(true_positive: Bool[np.ndarray, " k"], num_objects: int) -> float:
    """Return the area under the curve of the best precision at or above each recall (VOC since 2010)."""
    return float(_precision_envelope(true_positive)[true_positive].sum()) / num_objects


def eleven_point_ap(true_positive: Bool[np.ndarray, " k"], num_objects: int) -> float:
    """Return the mean of the best precision at recall >= 0, 0.1, ..., 1 (VOC 2007)."""
    envelope, num_true = _precision_envelope(true_positive), np.cumsum(true_positive)
    # in integers, so that 3 of 10 objects reach a recall of 0.3
    reached = [np.flatnonzero(10 * num_true >= tenth * num_objects)[:1] for tenth in range(11)]
    return sum(float(envelope[first].sum()) for first in reached) / 11


def _precision_envelope(true_positive: Bool[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Return the best precision at each detection or a later one."""
    precision = np.cumsum(true_positive) / np.arange(1, len(true_positive) + 1)
    return np.asarray(np.maximum.accumulate(precision[::-1])[::-1])
