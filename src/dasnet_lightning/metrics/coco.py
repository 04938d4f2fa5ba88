"""COCO's average precision of boxes and of masks, by pycocotools: its one home here.

COCO's protocol: 101-point interpolation, the mean over IoU 0.50:0.95, the best 100 detections of a class in an image;
a detection goes to the best object that is still free. Only small records are kept: numbers, boxes and run lengths.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from dasnet_lightning.metrics.gather import evaluate_gathered
from dasnet_lightning.metrics.run_lengths import as_coco

Kind = Literal["bbox", "segm"]
Shapes = Float[np.ndarray, "n 4"] | tuple[bytes, ...]  # boxes xyxy, or the run-length counts of masks

MAX_DETECTIONS = 100
ALL_AREAS = [0.0, 1e10]
NOT_ANNOTATED = -1.0


@dataclass(frozen=True, eq=False)
class Scene:
    """What is there and what was found in one image of `size` (height, width).

    `ignored` marks regions where a detection of the class neither counts nor harms (COCO's iscrowd).
    """

    size: tuple[int, int]
    labels: Int64[np.ndarray, " n"]
    shapes: Shapes
    ignored: Bool[np.ndarray, " n"]
    found_labels: Int64[np.ndarray, " m"]
    found_scores: Float[np.ndarray, " m"]
    found_shapes: Shapes


class CocoAP:
    """Average precision over scenes by image id, of boxes ("bbox") or of masks ("segm").

    An image id that comes again counts once. `compute` gathers the scenes of all processes.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.scenes: dict[str, Scene] = {}

    def add(self, image_id: str, scene: Scene) -> None:
        self.scenes.setdefault(image_id, scene)

    def compute(self, class_names: Sequence[str] = ()) -> dict[str, float]:
        """`summarize_coco` of all scenes of all processes, the same on every rank."""
        return evaluate_gathered(self.scenes, partial(summarize_coco, kind=self.kind, class_names=class_names))

    def reset(self) -> None:
        self.scenes.clear()


def as_array(tensor: Tensor) -> np.ndarray:
    """A copy in memory of its own: a view would keep alive the batch that it is a part of."""
    return tensor.detach().cpu().numpy().copy()


def summarize_coco(scenes: Mapping[str, Scene], kind: Kind, class_names: Sequence[str] = ()) -> dict[str, float]:
    """`ap` averaged over IoU 0.50:0.95, `ap50` and `ap75` in 0..1, -1 where nothing was annotated.

    `ap/<class>` and so on by class name for classes that were annotated. Equal scores keep the order of the scenes.
    """
    labels = sorted({int(label) for scene in scenes.values() for label in (*scene.labels, *scene.found_labels)})
    precision = _precision(scenes, kind, labels)
    summary = {"ap": _mean(precision), "ap50": _mean(precision[0]), "ap75": _mean(precision[5])}
    for column, label in enumerate(labels):
        of_class = precision[:, :, column]
        if label < len(class_names) and _mean(of_class) != NOT_ANNOTATED:
            parts = {"ap": of_class, "ap50": of_class[0], "ap75": of_class[5]}
            summary |= {f"{name}/{class_names[label]}": _mean(part) for name, part in parts.items()}
    return summary


def _precision(scenes: Mapping[str, Scene], kind: Kind, labels: Sequence[int]) -> Float[np.ndarray, "t r k"]:
    """Precision by IoU threshold, recall and class; -1 for a class that was never annotated."""
    ordered = list(scenes.values())
    images = [{"id": number, "height": s.size[0], "width": s.size[1]} for number, s in enumerate(ordered)]
    truth = [_annotations(s.size, s.labels, s.shapes) for s in ordered]
    found = [_annotations(s.size, s.found_labels, s.found_shapes) for s in ordered]
    for rows, scene in zip(truth, ordered, strict=True):
        for row, ignored in zip(rows, scene.ignored.tolist(), strict=True):
            row["iscrowd"] = int(ignored)
    for rows, scene in zip(found, ordered, strict=True):
        for row, score in zip(rows, scene.found_scores.tolist(), strict=True):
            row["score"] = score
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_index(images, labels, truth), _index(images, labels, found), kind)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [ALL_AREAS], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"][:, :, :, 0, 0])


def _index(
    images: Sequence[dict[str, Any]], labels: Sequence[int], annotations: Sequence[Sequence[dict[str, Any]]]
) -> COCO:
    """A COCO data set in memory; detections go the same way, for loadRes refuses an empty list."""
    rows = [row | {"image_id": number} for number, of_image in enumerate(annotations) for row in of_image]
    coco = COCO()
    coco.dataset = {
        "images": list(images),
        "categories": [{"id": label} for label in labels],
        # ids from 1: COCOeval takes the id 0 for "not matched"
        "annotations": [row | {"id": row_id} for row_id, row in enumerate(rows, start=1)],
    }
    coco.createIndex()
    return coco


def _annotations(size: tuple[int, int], labels: Int64[np.ndarray, " n"], shapes: Shapes) -> list[dict[str, Any]]:
    if isinstance(shapes, tuple):
        masks = as_coco(shapes, size)
        areas = coco_mask.area(masks)
        fields = [{"segmentation": mask, "area": int(area)} for mask, area in zip(masks, areas, strict=True)]
    else:
        corners = zip(shapes[:, :2].tolist(), (shapes[:, 2:] - shapes[:, :2]).tolist(), strict=True)
        fields = [{"bbox": [*start, *extent], "area": extent[0] * extent[1]} for start, extent in corners]
    return [{"category_id": label, **rest} for label, rest in zip(labels.tolist(), fields, strict=True)]


def _mean(precision: Float[np.ndarray, "..."]) -> float:
    annotated = precision[precision > NOT_ANNOTATED]
    return float(annotated.mean()) if annotated.size else NOT_ANNOTATED
