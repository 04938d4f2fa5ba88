"""COCO's average precision by external evaluators: pycocotools, or faster-coco-eval (the extra `eval`).

They give the same values as the built-in evaluation (`metrics.coco`), which is faster and needs less memory. Use them to
report values of a well-known program; the tests use them as reference.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int64

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.metrics.matching import NOT_ANNOTATED, EvaluatedImage, IoUType, Shapes
from dasnet_lightning.rle import areas, as_coco

Evaluator = Literal["built-in", "pycocotools", "faster_coco_eval"]

MAX_DETECTIONS = 100
ALL_AREAS = [0.0, 1e10]


def check_evaluator(evaluator: Evaluator) -> None:
    """Raise ConfigError if the evaluator does not exist or its package is not installed."""
    if evaluator not in get_args(Evaluator):
        raise ConfigError(f"no evaluator '{evaluator}': choose one of {', '.join(get_args(Evaluator))}")
    if evaluator != "built-in" and find_spec(evaluator) is None:
        raise ConfigError(f"evaluator '{evaluator}' is not installed: pip install 'dasnet-lightning[eval]'")


def run_evaluator(
    images: Mapping[str, EvaluatedImage], iou_type: IoUType, evaluator: Evaluator
) -> dict[int, Float[np.ndarray, "t r"] | None]:
    """Return the precision of each class by IoU and recall threshold, None for a class without annotations."""
    check_evaluator(evaluator)
    evaluated = list(images.values())
    labels = sorted({int(label) for image in evaluated for label in (*image.labels, *image.detected_labels)})
    if not labels:
        return {}
    coco, coco_eval = _load_classes(evaluator)
    entries = [{"id": index, "height": image.size[0], "width": image.size[1]} for index, image in enumerate(evaluated)]
    ground_truth = [_annotations(image.size, image.labels, image.shapes) for image in evaluated]
    detections = [_annotations(image.size, image.detected_labels, image.detected_shapes) for image in evaluated]
    for annotations, image in zip(ground_truth, evaluated, strict=True):
        for annotation, ignored in zip(annotations, image.ignored.tolist(), strict=True):
            annotation["iscrowd"] = int(ignored)
    for annotations, image in zip(detections, evaluated, strict=True):
        for annotation, score in zip(annotations, image.detected_scores.tolist(), strict=True):
            annotation["score"] = score
    with redirect_stdout(io.StringIO()):  # both packages print their progress
        indexed = [_fill_index(coco(), entries, labels, annotations) for annotations in (ground_truth, detections)]
        evaluation = coco_eval(*indexed, iou_type)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [ALL_AREAS], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]
    annotated = precision[0, 0] != NOT_ANNOTATED
    return {label: precision[:, :, k] if annotated[k] else None for k, label in enumerate(labels)}


def _load_classes(evaluator: Evaluator) -> tuple[Any, Any]:
    """Return the data set class and the evaluation class of a package."""
    if evaluator == "faster_coco_eval":
        package = import_module("faster_coco_eval")
        return package.COCO, package.COCOeval_faster
    return import_module("pycocotools.coco").COCO, import_module("pycocotools.cocoeval").COCOeval


def _fill_index(
    coco: Any, images: Sequence[dict[str, Any]], labels: Sequence[int], annotations: Sequence[Sequence[dict[str, Any]]]
) -> Any:
    """Fill a COCO data set in memory, also with detections: `loadRes` refuses an empty list."""
    rows = [annotation | {"image_id": index} for index, of_image in enumerate(annotations) for annotation in of_image]
    coco.dataset = {
        "images": list(images),
        "categories": [{"id": label, "name": str(label)} for label in labels],
        # ids from 1: 0 means "not matched"
        "annotations": [row | {"id": row_id} for row_id, row in enumerate(rows, start=1)],
    }
    coco.createIndex()
    return coco


def _annotations(size: tuple[int, int], labels: Int64[np.ndarray, " n"], shapes: Shapes) -> list[dict[str, Any]]:
    if isinstance(shapes, tuple):
        masks = zip(as_coco(shapes, size), areas(shapes, size).tolist(), strict=True)
        fields = [{"segmentation": mask, "area": area} for mask, area in masks]
    else:
        boxes = zip(shapes[:, :2].tolist(), (shapes[:, 2:] - shapes[:, :2]).tolist(), strict=True)
        fields = [{"bbox": [*corner, *extent], "area": extent[0] * extent[1]} for corner, extent in boxes]
    return [{"category_id": label, **shape} for label, shape in zip(labels.tolist(), fields, strict=True)]
