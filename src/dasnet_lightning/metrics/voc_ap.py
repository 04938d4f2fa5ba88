"""mAP^r: average precision of instance masks after PASCAL VOC and SDS.

Detections are taken in the order of their scores over the whole set. Each goes to the object of its class in its image
with the *largest* mask IoU, taken or not (COCO's goes to the best that is free). At or above the threshold the first one
of an object is right and every further one a duplicate, which is wrong; below it a detection is wrong. A detection that
is not right and lies by half of its area in an ignored region of its class is not counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from dasnet_lightning.metrics.matching import NOT_ANNOTATED, Comparison

THRESHOLDS = (0.5, 0.7, 0.75)
EXCUSED_OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class Judged:
    """The detections of one class over the whole set, best score first.

    best: the object of each, numbered through the set, -1 where its image has none; iou: with it; excused: in an ignored
    region.
    """

    best: Int64[np.ndarray, " m"]
    iou: Float[np.ndarray, " m"]
    excused: Bool[np.ndarray, " m"]
    objects: int


def class_figures(pairs: Sequence[Comparison]) -> dict[str, float] | None:
    """`apr50_area`, `apr50_11point` and so on for 0.7 and 0.75 of one class, in 0..1; None where it has no object.

    Equal scores keep the order of the images.
    """
    judged = merge(pairs)
    if not judged.objects:
        return None
    figures = {}
    for threshold in THRESHOLDS:
        hits = count_hits(judged, threshold)
        for kind, measure in (("area", area_ap), ("11point", eleven_point_ap)):
            figures[f"apr{round(100 * threshold)}_{kind}"] = measure(hits, judged.objects)
    return figures


def summarize_regions(
    figures: Mapping[int, Mapping[str, float] | None], class_names: Sequence[str] = ()
) -> dict[str, float]:
    """The means of `class_figures` over the classes that have an object, -1 where none has; figures: by label.

    Also `apr50_area/<class>` and so on for the classes that have a name.
    """
    known = {label: each for label, each in figures.items() if each is not None}
    summary: dict[str, float] = {}
    for name in (f"apr{round(100 * threshold)}_{kind}" for threshold in THRESHOLDS for kind in ("area", "11point")):
        summary[name] = float(np.mean([each[name] for each in known.values()])) if known else NOT_ANNOTATED
        named = {label: each[name] for label, each in known.items() if label < len(class_names)}
        summary |= {f"{name}/{class_names[label]}": value for label, value in named.items()}
    return summary


def merge(pairs: Sequence[Comparison]) -> Judged:
    """The detections of a class over the whole set, best score first, with the objects numbered through."""
    starts = np.cumsum([0, *(pair.iou.shape[1] for pair in pairs)])
    best = [
        start + pair.iou.argmax(axis=1) if pair.iou.shape[1] else np.full(len(pair.iou), -1)
        for pair, start in zip(pairs, starts[:-1], strict=True)
    ]
    order = np.argsort(-np.concatenate([pair.scores for pair in pairs]), kind="stable")
    return Judged(
        best=np.concatenate(best)[order],
        iou=np.concatenate([pair.iou.max(axis=1, initial=0.0) for pair in pairs])[order],
        excused=np.concatenate([pair.covered >= EXCUSED_OVERLAP for pair in pairs])[order],
        objects=int(starts[-1]),
    )


def count_hits(judged: Judged, threshold: float) -> Bool[np.ndarray, " k"]:
    """Which of the counted detections are right, best score first."""
    candidates = np.flatnonzero((judged.best >= 0) & (judged.iou >= threshold))
    firsts = np.unique(judged.best[candidates], return_index=True)[1]
    right = np.zeros(len(judged.best), dtype=bool)
    right[candidates[firsts]] = True
    return np.asarray(right[right | ~judged.excused])


def area_ap(hits: Bool[np.ndarray, " k"], objects: int) -> float:
    """The area under precision over recall, where precision is the best at that recall or a higher one (VOC since 2010)."""
    return float(_envelope(hits)[hits].sum()) / objects


def eleven_point_ap(hits: Bool[np.ndarray, " k"], objects: int) -> float:
    """The mean of the best precision at recall >= 0, 0.1, ..., 1 (VOC 2007)."""
    envelope, found = _envelope(hits), np.cumsum(hits)
    # in whole numbers: 3 of 10 objects do reach a recall of 0.3
    reached = [np.flatnonzero(10 * found >= tenth * objects)[:1] for tenth in range(11)]
    return sum(float(envelope[first].sum()) for first in reached) / 11


def _envelope(hits: Bool[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return np.asarray(np.maximum.accumulate(precision[::-1])[::-1])
