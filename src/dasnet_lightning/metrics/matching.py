"""Records of detections and ground truth for evaluation, and their IoU class by class.

Images are kept as small records of numbers, boxes and run-length counts. All metrics read the same comparisons, so that
every IoU is computed once. Only the comparisons of one class exist at a time.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int64
from pycocotools import mask as coco_mask
from torch import Tensor

from dasnet_lightning.rle import as_coco

IoUType = Literal["bbox", "segm"]
Shapes = Float[np.ndarray, "n 4"] | tuple[bytes, ...]  # boxes xyxy, or the run-length counts of masks

NOT_ANNOTATED = -1.0


@dataclass(frozen=True, eq=False)
class EvaluatedImage:
    """Ground truth and detections of one image.

    Attributes:
        size: (height, width) of the image.
        labels: classes of the objects.
        shapes: boxes or masks of the objects.
        ignored: objects that do not count, and whose area may hold detections of the class (COCO's `iscrowd`).
        detected_labels: classes of the detections.
        detected_scores: scores of the detections.
        detected_shapes: boxes or masks of the detections.
    """

    size: tuple[int, int]
    labels: Int64[np.ndarray, " n"]
    shapes: Shapes
    ignored: Bool[np.ndarray, " n"]
    detected_labels: Int64[np.ndarray, " m"]
    detected_scores: Float[np.ndarray, " m"]
    detected_shapes: Shapes


@dataclass(frozen=True, eq=False)
class Comparison:
    """Detections of one class in one image, sorted by descending score, and their overlaps with the ground truth.

    Attributes:
        scores: scores of the m detections; equal ones keep the order of the image.
        iou: IoU of each detection with each of the n objects that count.
        covered: the largest fraction of each detection that lies in one ignored region.
    """

    scores: Float[np.ndarray, " m"]
    iou: Float[np.ndarray, "m n"]
    covered: Float[np.ndarray, " m"]


def as_array(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to a NumPy array; a view would keep the memory of its whole batch alive."""
    return tensor.detach().cpu().numpy().copy()


def compare_by_class(images: Mapping[str, EvaluatedImage]) -> Iterator[tuple[int, list[Comparison]]]:
    """Yield each label in ascending order, with a comparison for each image where it occurs, in the images' order."""
    by_label: dict[int, list[EvaluatedImage]] = defaultdict(list)
    for image in images.values():
        for label in {*image.labels.tolist(), *image.detected_labels.tolist()}:
            by_label[label].append(image)
    for label in sorted(by_label):
        yield label, [compare(image, label) for image in by_label[label]]


def compare(image: EvaluatedImage, label: int) -> Comparison:
    """Compare the detections of one class with its objects and ignored regions."""
    objects = np.flatnonzero(image.labels == label)
    detections = np.flatnonzero(image.detected_labels == label)
    detections = detections[np.argsort(-image.detected_scores[detections], kind="stable")]
    ignored = image.ignored[objects]
    counted = ~ignored & ~_has_negative_area(image.shapes, objects)
    if len(objects) and len(detections):
        overlaps = coco_mask.iou(
            _select_for_coco(image.detected_shapes, detections, image.size),
            _select_for_coco(image.shapes, objects, image.size),
            ignored.tolist(),
        )
    else:
        overlaps = np.zeros((len(detections), len(objects)))
    in_ignored = overlaps[:, ignored].max(axis=1, initial=0.0)
    return Comparison(
        scores=image.detected_scores[detections],
        iou=overlaps[:, counted],
        covered=np.maximum(in_ignored, _has_negative_area(image.detected_shapes, detections)),
    )


def _select_for_coco(
    shapes: Shapes, rows: Int64[np.ndarray, " k"], size: tuple[int, int]
) -> Sequence[object] | np.ndarray:
    """Return selected shapes as pycocotools reads them: run lengths, or xywh boxes."""
    if isinstance(shapes, tuple):
        return as_coco([shapes[row] for row in rows.tolist()], size)
    boxes = np.array(shapes[rows], dtype=np.float64, order="C")  # pycocotools reads the raw memory
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _has_negative_area(shapes: Shapes, rows: Int64[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
    """Return which boxes have negative area; they overlap nothing, and COCO's area range excludes them."""
    if isinstance(shapes, tuple):
        return np.zeros(len(rows), dtype=bool)
    extents = shapes[rows, 2:] - shapes[rows, :2]
    return np.asarray(extents.prod(axis=1) < 0)
