"""COCO's average precision of boxes and masks, equal to pycocotools' and computed class by class.

Protocol: 101-point interpolation, mean over IoU 0.50:0.95, at most 100 detections per class and image. A detection
matches the unmatched object with the highest IoU. `coco_evaluators` runs other implementations of the protocol.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Float

from dasnet_lightning.distributed import evaluate_gathered
from dasnet_lightning.metrics.coco_evaluators import MAX_DETECTIONS, Evaluator, check_evaluator, run_evaluator
from dasnet_lightning.metrics.matching import NOT_ANNOTATED, Comparison, EvaluatedImage, IoUType, compare_by_class

# computed like pycocotools', so that the floating-point values are equal
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)

Precision = Float[np.ndarray, "t r"]  # by IoU threshold and recall threshold


class CocoAP:
    """Accumulator of images for COCO's average precision; a repeated image id counts once.

    Args:
        iou_type: "bbox" for boxes or "segm" for masks.
        evaluator: the implementation of the protocol (`metrics.coco_evaluators`).
    """

    def __init__(self, iou_type: IoUType, evaluator: Evaluator = "built-in") -> None:
        check_evaluator(evaluator)
        self.iou_type: IoUType = iou_type
        self.evaluator: Evaluator = evaluator
        self.images: dict[str, EvaluatedImage] = {}

    def add(self, image_id: str, image: EvaluatedImage) -> None:
        """Add an image, unless its id is known."""
        self.images.setdefault(image_id, image)

    def compute(self, class_names: Sequence[str] = ()) -> dict[str, float]:
        """Return `evaluate_coco` of the images of all ranks, on every rank."""
        evaluate = partial(evaluate_coco, iou_type=self.iou_type, class_names=class_names, evaluator=self.evaluator)
        return evaluate_gathered(self.images, evaluate)

    def reset(self) -> None:
        self.images.clear()


def evaluate_coco(
    images: Mapping[str, EvaluatedImage],
    iou_type: IoUType,
    class_names: Sequence[str] = (),
    evaluator: Evaluator = "built-in",
) -> dict[str, float]:
    """Return `summarize_coco` of images that all hold boxes ("bbox") or all hold masks ("segm")."""
    if evaluator == "built-in":
        precision = {label: class_precision(comparisons) for label, comparisons in compare_by_class(images)}
    else:
        precision = run_evaluator(images, iou_type, evaluator)
    return summarize_coco(precision, class_names)


def summarize_coco(precision: Mapping[int, Precision | None], class_names: Sequence[str] = ()) -> dict[str, float]:
    """Average the precision of all annotated classes.

    Args:
        precision: precision by label, None for a class without annotations.
        class_names: names of the labels, background first; an annotated class without a name enters the means only.

    Returns:
        `ap` (mean over IoU 0.50:0.95), `ap50` and `ap75` in 0..1, or -1 if nothing is annotated. Each annotated class
        with a name adds `ap/<class>`, `ap50/<class>` and `ap75/<class>`.
    """
    annotated = {label: values for label, values in precision.items() if values is not None}
    summary = _mean_precision(list(annotated.values()))
    for label, values in annotated.items():
        if label < len(class_names):
            summary |= {f"{name}/{class_names[label]}": value for name, value in _mean_precision([values]).items()}
    return summary


def _mean_precision(precision: Sequence[Precision]) -> dict[str, float]:
    if not precision:
        return dict.fromkeys(("ap", "ap50", "ap75"), NOT_ANNOTATED)
    by_threshold = np.stack(precision).mean(axis=(0, 2))
    return {"ap": float(by_threshold.mean()), "ap50": float(by_threshold[0]), "ap75": float(by_threshold[5])}


def class_precision(comparisons: Sequence[Comparison]) -> Precision | None:
    """Return the precision of one class over all images, or None if it has no object that counts.

    Detections with equal scores keep the order of the images.
    """
    num_objects = sum(comparison.iou.shape[1] for comparison in comparisons)
    if not num_objects:
        return None
    matches = [match_detections(comparison) for comparison in comparisons]
    scores = np.concatenate([comparison.scores[:MAX_DETECTIONS] for comparison in comparisons])
    order = np.argsort(-scores, kind="stable")
    true_positive = np.concatenate([true for true, _ in matches], axis=1)[:, order]
    false_positive = np.concatenate([false for _, false in matches], axis=1)[:, order]
    return np.stack(
        [_interpolate(true, false, num_objects) for true, false in zip(true_positive, false_positive, strict=True)]
    )


def match_detections(comparison: Comparison) -> tuple[Bool[np.ndarray, "t m"], Bool[np.ndarray, "t m"]]:
    """Return the true and the false positives at each IoU threshold; a detection that is neither is ignored."""
    iou, thresholds = comparison.iou[:MAX_DETECTIONS], IOU_THRESHOLDS[:, None]
    true_positive = np.zeros((len(thresholds), len(iou)), dtype=bool)
    unmatched = np.ones((len(thresholds), iou.shape[1]), dtype=bool)
    threshold_index, last = np.arange(len(thresholds)), iou.shape[1] - 1
    for row in np.flatnonzero(iou.max(axis=1, initial=0.0) >= IOU_THRESHOLDS[0]).tolist():
        candidates = np.where(unmatched & (iou[row] >= thresholds), iou[row], 0.0)
        best = last - candidates[:, ::-1].argmax(axis=1)  # the last of equal ones, like pycocotools
        true_positive[:, row] = candidates[threshold_index, best] > 0
        unmatched[threshold_index, best] &= ~true_positive[:, row]
    false_positive = ~true_positive & (comparison.covered[:MAX_DETECTIONS] < thresholds)
    return true_positive, false_positive


def _interpolate(
    true_positive: Bool[np.ndarray, " m"], false_positive: Bool[np.ndarray, " m"], num_objects: int
) -> Float[np.ndarray, " r"]:
    """Return the best precision at or above each recall threshold, 0 for a recall that is not reached."""
    num_true, num_false = np.cumsum(true_positive).astype(float), np.cumsum(false_positive).astype(float)
    precision = num_true / (num_true + num_false + np.spacing(1))
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return np.asarray(envelope[np.searchsorted(num_true / num_objects, RECALL_THRESHOLDS, side="left")])
