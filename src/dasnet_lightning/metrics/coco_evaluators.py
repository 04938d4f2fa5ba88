"""COCO's average precision by evaluators of others: pycocotools, or faster-coco-eval (the extra `eval`).

They give the figures of the built-in evaluation (metrics.coco), which is quicker and keeps less; they are there for those
who want a figure from the program that others use, and for the tests.
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
from dasnet_lightning.metrics.matching import NOT_ANNOTATED, EvaluatedImage, Kind, Shapes
from dasnet_lightning.rle import areas, as_coco

Evaluator = Literal["built-in", "pycocotools", "faster_coco_eval"]

MAX_DETECTIONS = 100
ALL_AREAS = [0.0, 1e10]


def check_evaluator(evaluator: Evaluator) -> None:
    """Raises ConfigError where there is no such evaluator, or where its package is not installed."""
    if evaluator not in get_args(Evaluator):
        raise ConfigError(f"no evaluator '{evaluator}': choose one of {', '.join(get_args(Evaluator))}")
    if evaluator != "built-in" and find_spec(evaluator) is None:
        raise ConfigError(f"evaluator '{evaluator}' is not installed: pip install 'dasnet-lightning[eval]'")


def run_evaluator(
    scenes: Mapping[str, EvaluatedImage], kind: Kind, evaluator: Evaluator
) -> dict[int, Float[np.ndarray, "t r"] | None]:
    """The precision of each class by IoU threshold and recall; None for one that was never annotated."""
    check_evaluator(evaluator)
    labels = sorted({int(label) for scene in scenes.values() for label in (*scene.labels, *scene.found_labels)})
    if not labels:
        return {}
    coco, evaluate = _classes(evaluator)
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
    with redirect_stdout(io.StringIO()):  # they print their progress
        evaluation = evaluate(_index(coco(), images, labels, truth), _index(coco(), images, labels, found), kind)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [ALL_AREAS], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]
    annotated = precision[0, 0] != NOT_ANNOTATED
    return {label: precision[:, :, k] if annotated[k] else None for k, label in enumerate(labels)}


def _classes(evaluator: Evaluator) -> tuple[Any, Any]:
    """The data set and the evaluation of a package; both have the same ones."""
    if evaluator == "faster_coco_eval":
        package = import_module("faster_coco_eval")
        return package.COCO, package.COCOeval_faster
    return import_module("pycocotools.coco").COCO, import_module("pycocotools.cocoeval").COCOeval


def _index(
    coco: Any, images: Sequence[dict[str, Any]], labels: Sequence[int], annotations: Sequence[Sequence[dict[str, Any]]]
) -> Any:
    """Fill a data set in memory; detections go the same way, for loadRes refuses an empty list."""
    rows = [row | {"image_id": number} for number, of_image in enumerate(annotations) for row in of_image]
    coco.dataset = {
        "images": list(images),
        "categories": [{"id": label, "name": str(label)} for label in labels],
        # ids from 1: the id 0 stands for "not matched"
        "annotations": [row | {"id": row_id} for row_id, row in enumerate(rows, start=1)],
    }
    coco.createIndex()
    return coco


def _annotations(size: tuple[int, int], labels: Int64[np.ndarray, " n"], shapes: Shapes) -> list[dict[str, Any]]:
    if isinstance(shapes, tuple):
        pixels = areas(shapes, size).tolist()
        fields = [
            {"segmentation": mask, "area": area} for mask, area in zip(as_coco(shapes, size), pixels, strict=True)
        ]
    else:
        corners = zip(shapes[:, :2].tolist(), (shapes[:, 2:] - shapes[:, :2]).tolist(), strict=True)
        fields = [{"bbox": [*start, *extent], "area": extent[0] * extent[1]} for start, extent in corners]
    return [{"category_id": label, **rest} for label, rest in zip(labels.tolist(), fields, strict=True)]
