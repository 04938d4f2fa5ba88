"""COCO's average precision of boxes and of masks: pycocotools' figures, computed from one class's overlaps at a time.

COCO's protocol: 101-point interpolation, the mean over IoU 0.50:0.95, the best 100 detections of a class in an image;
a detection goes to the best object that is still free. `coco_evaluators` has other implementations of it to choose from.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Float

from dasnet_lightning.distributed import evaluate_gathered
from dasnet_lightning.metrics.coco_evaluators import MAX_DETECTIONS, Evaluator, check_evaluator, run_evaluator
from dasnet_lightning.metrics.matching import NOT_ANNOTATED, Comparison, EvaluatedImage, Kind, compare_by_class

# written as pycocotools writes them: the same floating-point numbers decide
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)

Precision = Float[np.ndarray, "t r"]  # by IoU threshold and recall


class CocoAP:
    """Average precision over scenes by image id, of boxes ("bbox") or of masks ("segm").

    An image id that comes again counts once. `compute` gathers the scenes of all processes.
    """

    def __init__(self, kind: Kind, evaluator: Evaluator = "built-in") -> None:
        check_evaluator(evaluator)
        self.kind: Kind = kind
        self.evaluator: Evaluator = evaluator
        self.scenes: dict[str, EvaluatedImage] = {}

    def add(self, image_id: str, scene: EvaluatedImage) -> None:
        self.scenes.setdefault(image_id, scene)

    def compute(self, class_names: Sequence[str] = ()) -> dict[str, float]:
        """`evaluate_coco` of all scenes of all processes, the same on every rank."""
        evaluate = partial(evaluate_coco, kind=self.kind, class_names=class_names, evaluator=self.evaluator)
        return evaluate_gathered(self.scenes, evaluate)

    def reset(self) -> None:
        self.scenes.clear()


def evaluate_coco(
    scenes: Mapping[str, EvaluatedImage], kind: Kind, class_names: Sequence[str] = (), evaluator: Evaluator = "built-in"
) -> dict[str, float]:
    """`summarize_coco` of scenes, all with boxes ("bbox") or all with masks ("segm")."""
    if evaluator != "built-in":
        return summarize_coco(run_evaluator(scenes, kind, evaluator), class_names)
    return summarize_coco({label: class_precision(pairs) for label, pairs in compare_by_class(scenes)}, class_names)


def summarize_coco(precision: Mapping[int, Precision | None], class_names: Sequence[str] = ()) -> dict[str, float]:
    """`ap` averaged over IoU 0.50:0.95, `ap50` and `ap75` in 0..1, -1 where nothing was annotated.

    precision: by label, None where the class was not annotated. `ap/<class>` and so on by class name for those that were.
    """
    known = {label: each for label, each in precision.items() if each is not None}
    summary = _means(list(known.values()))
    for label, each in known.items():
        if label < len(class_names):
            summary |= {f"{name}/{class_names[label]}": value for name, value in _means([each]).items()}
    return summary


def _means(precision: Sequence[Precision]) -> dict[str, float]:
    if not precision:
        return dict.fromkeys(("ap", "ap50", "ap75"), NOT_ANNOTATED)
    by_threshold = np.stack(precision).mean(axis=(0, 2))
    return {"ap": float(by_threshold.mean()), "ap50": float(by_threshold[0]), "ap75": float(by_threshold[5])}


def class_precision(pairs: Sequence[Comparison]) -> Precision | None:
    """The precision of one class over all images; None where it has no object that counts.

    Equal scores keep the order of the images.
    """
    objects = sum(pair.iou.shape[1] for pair in pairs)
    if not objects:
        return None
    judged = [match_detections(pair) for pair in pairs]
    order = np.argsort(-np.concatenate([pair.scores[:MAX_DETECTIONS] for pair in pairs]), kind="stable")
    right = np.concatenate([each[0] for each in judged], axis=1)[:, order]
    wrong = np.concatenate([each[1] for each in judged], axis=1)[:, order]
    return np.stack([_interpolate(*each, objects) for each in zip(right, wrong, strict=True)])


def match_detections(pair: Comparison) -> tuple[Bool[np.ndarray, "t m"], Bool[np.ndarray, "t m"]]:
    """Which of the detections that count are right at each IoU threshold, and which are wrong; the others are excused."""
    iou, thresholds = pair.iou[:MAX_DETECTIONS], IOU_THRESHOLDS[:, None]
    right = np.zeros((len(thresholds), len(iou)), dtype=bool)
    free = np.ones((len(thresholds), iou.shape[1]), dtype=bool)
    each, last = np.arange(len(thresholds)), iou.shape[1] - 1
    for row in np.flatnonzero(iou.max(axis=1, initial=0.0) >= IOU_THRESHOLDS[0]).tolist():
        strength = np.where(free & (iou[row] >= thresholds), iou[row], 0.0)
        best = last - strength[:, ::-1].argmax(axis=1)  # of equal ones the last, as in pycocotools
        right[:, row] = strength[each, best] > 0
        free[each, best] &= ~right[:, row]
    wrong = ~right & (pair.covered[:MAX_DETECTIONS] < thresholds)
    return right, wrong


def _interpolate(right: Bool[np.ndarray, " m"], wrong: Bool[np.ndarray, " m"], objects: int) -> Float[np.ndarray, " r"]:
    """The best precision at each recall threshold or a higher one; 0 where it is not reached."""
    hits, misses = np.cumsum(right).astype(float), np.cumsum(wrong).astype(float)
    precision = hits / (hits + misses + np.spacing(1))
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return np.asarray(envelope[np.searchsorted(hits / objects, RECALL_THRESHOLDS, side="left")])
