"""What is there beside what was found: the scenes that evaluation keeps, and their overlaps class by class.

Only small records are kept: numbers, boxes and run lengths. All figures read the same comparisons, so that each overlap
is computed once; and only those of one class exist at a time.
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

Kind = Literal["bbox", "segm"]
Shapes = Float[np.ndarray, "n 4"] | tuple[bytes, ...]  # boxes xyxy, or the run-length counts of masks

NOT_ANNOTATED = -1.0


@dataclass(frozen=True, eq=False)
class EvaluatedImage:
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


@dataclass(frozen=True, eq=False)
class Comparison:
    """The detections of one class in one image, best score first, equal scores in the order of the scene.

    iou: with each object that counts. covered: the largest share of a detection that lies in one ignored region.
    """

    scores: Float[np.ndarray, " m"]
    iou: Float[np.ndarray, "m n"]
    covered: Float[np.ndarray, " m"]


def as_array(tensor: Tensor) -> np.ndarray:
    """A copy in memory of its own: a view would keep alive the batch that it is a part of."""
    return tensor.detach().cpu().numpy().copy()


def compare_by_class(scenes: Mapping[str, EvaluatedImage]) -> Iterator[tuple[int, list[Comparison]]]:
    """Each label that occurs, in rising order, with a comparison for each image where it does, in the scenes' order."""
    by_label: dict[int, list[EvaluatedImage]] = defaultdict(list)
    for scene in scenes.values():
        for label in {*scene.labels.tolist(), *scene.found_labels.tolist()}:
            by_label[label].append(scene)
    for label in sorted(by_label):
        yield label, [compare(scene, label) for scene in by_label[label]]


def compare(scene: EvaluatedImage, label: int) -> Comparison:
    """The overlaps of what was found of one class with its objects and its ignored regions."""
    there, found = np.flatnonzero(scene.labels == label), np.flatnonzero(scene.found_labels == label)
    found = found[np.argsort(-scene.found_scores[found], kind="stable")]
    ignored = scene.ignored[there]
    counted = ~ignored & ~_inverted(scene.shapes, there)
    if len(there) and len(found):
        truth = _shapes(scene.shapes, there, scene.size)
        overlaps = coco_mask.iou(_shapes(scene.found_shapes, found, scene.size), truth, ignored.tolist())
    else:
        overlaps = np.zeros((len(found), len(there)))
    return Comparison(
        scores=scene.found_scores[found],
        iou=overlaps[:, counted],
        covered=np.maximum(overlaps[:, ignored].max(axis=1, initial=0.0), _inverted(scene.found_shapes, found)),
    )


def _shapes(shapes: Shapes, rows: Int64[np.ndarray, " k"], size: tuple[int, int]) -> Sequence[object] | np.ndarray:
    """Some of the shapes as pycocotools takes them: run lengths, or boxes by corner and extent."""
    if isinstance(shapes, tuple):
        return as_coco([shapes[row] for row in rows.tolist()], size)
    boxes = np.array(shapes[rows], dtype=np.float64, order="C")  # pycocotools reads the memory as it lies
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _inverted(shapes: Shapes, rows: Int64[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
    """Boxes of negative area, which overlap with nothing: COCO's area range leaves them out."""
    if isinstance(shapes, tuple):
        return np.zeros(len(rows), dtype=bool)
    extents = shapes[rows, 2:] - shapes[rows, :2]
    return np.asarray(extents.prod(axis=1) < 0)
