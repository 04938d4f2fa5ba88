"""The pictures of a report: validation images in panels, by budget, with the ground truth beside them."""

from collections.abc import Mapping

import numpy as np

from dasnet_lightning.console import progress
from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.pixels import ImageRange
from dasnet_lightning.data.records import ImageRecord
from dasnet_lightning.functional.boxes import scale_boxes
from dasnet_lightning.functional.regions import ground_truth_detections
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.inference.segmenter import Segmenter, load
from dasnet_lightning.report import Picture
from dasnet_lightning.rle import decode
from dasnet_lightning.training.results import RunResult
from dasnet_lightning.types import Detections, GroundTruth
from dasnet_lightning.visualization import (
    draw_boxes,
    draw_masks,
    draw_segmentation,
    draw_semantic,
    enlarge,
    readable_scale,
)


def draw_pictures(result: RunResult, count: int) -> list[Picture]:
    """Draw validation images spread over the set: detections, masks of the first and last budget, ground truth.

    Semantic segmentation is shown as class maps, instance segmentation with a color for each object.
    """
    segmenters = {item.budget: load(item.checkpoint) for item in (result.budgets[0], result.budgets[-1])}
    val_set, instances = result.val_set, result.config.task == "instance"
    masked = [index for index, record in enumerate(val_set.records) if record.has_masks]
    step = max(1, len(masked) // max(1, count))
    pictures = []
    for index in progress(masked[::step][:count], "pictures"):
        truth = val_set[(0, index)].target.truth
        if truth is not None:
            given = None if result.detects else ground_truth_detections(val_set[(0, index)].target)
            pictures.append(draw_row(segmenters, val_set.records[index], truth, instances, val_set.image_range, given))
    return pictures


def draw_row(
    segmenters: Mapping[str, Segmenter],
    record: ImageRecord,
    truth: GroundTruth,
    instances: bool,
    image_range: ImageRange | None = None,
    given: Detections | None = None,
) -> Picture:
    """Draw one image in panels: detected or given boxes, the masks of these boxes by budget, the ground truth.

    A small image is enlarged before it is segmented, so that the masks are as sharp as the network's probabilities.
    """
    image = read_image(record.path, image_range=image_range)
    scale = readable_scale(image)
    large = enlarge(image, scale)
    predictions = {}
    for budget, segmenter in segmenters.items():
        boxes = (
            None if given is None else scale_boxes(given.boxes, segmenter.image_size, (large.shape[0], large.shape[1]))
        )
        labels = None if given is None else given.labels.tolist()
        predictions[budget] = segmenter.segment(large, None if boxes is None else boxes.numpy(), labels)
    first = next(iter(predictions.values()))
    names = first.class_names
    draw = _draw_instances if instances else _draw_classes
    scores = first.scores if given is None else None
    title = "detected boxes" if given is None else "ground-truth boxes"
    panels = {title: draw_boxes(large, first.boxes, first.labels, scores, names)}
    panels |= {_title(budget): draw(prediction) for budget, prediction in predictions.items()}
    if instances:
        panels["ground truth"] = draw_masks(image, true_masks(record, truth), scale=scale)
    else:
        panels["ground truth"] = draw_semantic(image, truth.semantic, names, scale=scale)
    first_title, *others = panels
    return Picture(
        record.path.name,
        panels[first_title],
        panels={title: panels[title] for title in others},
        image_title=first_title,
    )


def _title(budget: str) -> str:
    return f"all masks{budget.removeprefix('all')}" if budget.startswith("all") else f"masks: {budget}"


def _draw_classes(prediction: Segmentation) -> np.ndarray:
    return draw_semantic(prediction.image, prediction.semantic, prediction.class_names)


def _draw_instances(prediction: Segmentation) -> np.ndarray:
    return draw_segmentation(
        prediction.image,
        prediction.boxes,
        prediction.labels,
        prediction.scores,
        prediction.masks,
        prediction.class_names,
    )


def true_masks(record: ImageRecord, truth: GroundTruth) -> np.ndarray:
    """Return the masks of the objects that are not ignored; the mask of an object without one stays empty."""
    size = (truth.semantic.shape[0], truth.semantic.shape[1])
    nothing = np.zeros((1, *size), dtype=bool)
    shown = [counts for counts, item in zip(truth.masks, record.objects, strict=True) if not item.ignore]
    parts = [nothing if counts is None else np.asarray(decode([counts], size)) for counts in shown]
    return np.concatenate(parts) if parts else nothing[:0]
