"""mAP^r: average precision of instance masks after PASCAL VOC and SDS.

Detections are taken in the order of their scores over the whole set. Each goes to the object of its class in its image
with the *largest* mask IoU, taken or not (COCO's goes to the best that is free). At or above the threshold the first one
of an object is right and every further one a duplicate, which is wrong; below it a detection is wrong. A detection that
is not right and lies by half of its area in an ignored region of its class is not counted.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from pycocotools import mask as coco_mask

from dasnet_lightning.metrics.coco import NOT_ANNOTATED, Scene
from dasnet_lightning.metrics.run_lengths import as_coco

THRESHOLDS = (0.5, 0.7, 0.75)
EXCUSED_OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class Judged:
    """The detections of one class in one image: the best object of each (-1 without any), its IoU, and which are excused."""

    scores: Float[np.ndarray, " m"]
    best: Int64[np.ndarray, " m"]
    iou: Float[np.ndarray, " m"]
    excused: Bool[np.ndarray, " m"]
    objects: int


def summarize_regions(scenes: Mapping[str, Scene], class_names: Sequence[str] = ()) -> dict[str, float]:
    """`apr50_area`, `apr50_11point` and so on for 0.7 and 0.75, in 0..1: means over the classes that have an object.

    -1 where no class has one. `apr50_area/<class>` and so on for the classes that have a name. Equal scores keep the
    order of the scenes.
    """
    by_class: dict[int, list[Judged]] = defaultdict(list)
    for scene in scenes.values():
        for label in np.union1d(scene.labels, scene.found_labels).tolist():
            by_class[label].append(judge(scene, label))
    judged = {label: merge(parts) for label, parts in sorted(by_class.items())}
    judged = {label: item for label, item in judged.items() if item.objects}
    summary: dict[str, float] = {}
    for threshold in THRESHOLDS:
        hits = {label: count_hits(item, threshold) for label, item in judged.items()}
        for kind, measure in (("area", area_ap), ("11point", eleven_point_ap)):
            values = {label: measure(hits[label], item.objects) for label, item in judged.items()}
            name = f"apr{round(100 * threshold)}_{kind}"
            summary[name] = _mean(list(values.values()))
            named = {label: value for label, value in values.items() if label < len(class_names)}
            summary |= {f"{name}/{class_names[label]}": value for label, value in named.items()}
    return summary


def judge(scene: Scene, label: int) -> Judged:
    """Compare the masks that were found of one class with its objects and its ignored regions."""
    found = [counts for counts, its in zip(scene.found_shapes, scene.found_labels, strict=True) if its == label]
    there = scene.labels == label
    objects = [counts for counts, take in zip(scene.shapes, there & ~scene.ignored, strict=True) if take]
    regions = [counts for counts, take in zip(scene.shapes, there & scene.ignored, strict=True) if take]
    iou = _overlaps(found, objects, scene.size, crowd=False)
    excused = _overlaps(found, regions, scene.size, crowd=True).max(axis=1, initial=0.0) >= EXCUSED_OVERLAP
    best = iou.argmax(axis=1) if objects else np.full(len(found), -1)
    return Judged(
        scores=scene.found_scores[scene.found_labels == label],
        best=best,
        iou=iou.max(axis=1, initial=0.0),
        excused=np.asarray(excused),
        objects=len(objects),
    )


def merge(parts: Sequence[Judged]) -> Judged:
    """The detections of a class over the whole set, best score first, with the objects numbered through."""
    starts = np.cumsum([0, *(part.objects for part in parts)])
    best = [np.where(part.best < 0, -1, part.best + start) for part, start in zip(parts, starts[:-1], strict=True)]
    scores = np.concatenate([part.scores for part in parts])
    order = np.argsort(-scores, kind="stable")
    return Judged(
        scores=scores[order],
        best=np.concatenate(best)[order],
        iou=np.concatenate([part.iou for part in parts])[order],
        excused=np.concatenate([part.excused for part in parts])[order],
        objects=int(starts[-1]),
    )


def count_hits(judged: Judged, threshold: float) -> Bool[np.ndarray, " k"]:
    """Which of the counted detections are right, best score first."""
    candidates = np.flatnonzero((judged.best >= 0) & (judged.iou >= threshold))
    firsts = np.unique(judged.best[candidates], return_index=True)[1]
    right = np.zeros(len(judged.scores), dtype=bool)
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


def _overlaps(
    found: Sequence[bytes], others: Sequence[bytes], size: tuple[int, int], crowd: bool
) -> Float[np.ndarray, "m n"]:
    """IoU of every pair; with `crowd`, the intersection over the area of what was found."""
    if not found or not others:
        return np.zeros((len(found), len(others)))
    return np.asarray(coco_mask.iou(as_coco(found, size), as_coco(others, size), [int(crowd)] * len(others)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else NOT_ANNOTATED
