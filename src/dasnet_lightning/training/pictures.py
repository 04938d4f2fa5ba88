"""The pictures of a report: validation images in panels, by budget, with true and with detected boxes."""

from collections.abc import Mapping

import numpy as np

from dasnet_lightning.console import progress
from dasnet_lightning.data.records import ImageRecord
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.inference.segmenter import Segmenter, load
from dasnet_lightning.report import Picture
from dasnet_lightning.rle import decode
from dasnet_lightning.training.results import RunResult
from dasnet_lightning.types import GroundTruth
from dasnet_lightning.visualization import (
    draw_boxes,
    draw_masks,
    draw_segmentation,
    draw_semantic,
    readable_scale,
    side_by_side,
)


def draw_pictures(result: RunResult, count: int) -> list[Picture]:
    """Validation images spread over the set: what was detected, the masks of the first and the last budget, the truth.

    Semantic segmentation is shown as class maps, instance segmentation with a colour for each object.
    """
    segmenters = {item.budget: load(item.checkpoint) for item in (result.budgets[0], result.budgets[-1])}
    val_set, instances = result.val_set, result.config.task == "instance"
    masked = [index for index, record in enumerate(val_set.records) if record.has_masks]
    step = max(1, len(masked) // max(1, count))
    pictures = []
    for index in progress(masked[::step][:count], "pictures"):
        truth = val_set[(0, index)].target.truth
        if truth is not None:
            pictures.append(draw_row(segmenters, val_set.records[index], truth, instances))
    return pictures


def draw_row(segmenters: Mapping[str, Segmenter], record: ImageRecord, truth: GroundTruth, instances: bool) -> Picture:
    """One image in panels: detected boxes and their masks, masks of ground-truth boxes by budget, the truth."""
    first = next(iter(segmenters))
    found = segmenters[first].segment(record.path)
    image, names = found.image, found.class_names
    scale = readable_scale(image)
    draw = _draw_instances if instances else _draw_classes
    panels = {
        "detected boxes": draw_boxes(image, found.boxes, found.labels, found.scores, names, scale=scale),
        f"{first} masks, detected boxes": draw(found, scale),
    }
    known = [item for item in record.objects if not item.ignore]
    boxes, labels = [item.box for item in known], [item.label for item in known]
    for budget, segmenter in segmenters.items():
        given = segmenter.segment(record.path, boxes=boxes, labels=labels)
        panels[f"{budget} masks, true boxes"] = (
            draw_masks(image, given.masks, scale=scale) if instances else draw(given, scale)
        )
    if instances:
        masks = _true_masks(record, truth)
        panels["ground truth"] = draw_masks(image, masks, scale=scale)
    else:
        panels["ground truth"] = draw_semantic(image, truth.semantic, names, scale=scale)
    return Picture(record.path.name, side_by_side(list(panels.values()), list(panels)))


def _draw_classes(found: Segmentation, scale: int) -> np.ndarray:
    return draw_semantic(found.image, found.semantic, found.class_names, scale=scale)


def _draw_instances(found: Segmentation, scale: int) -> np.ndarray:
    return draw_segmentation(
        found.image, found.boxes, found.labels, found.scores, found.masks, found.class_names, scale=scale
    )


def _true_masks(record: ImageRecord, truth: GroundTruth) -> np.ndarray:
    """The masks of the objects that are not ignored, in their order; one without a mask stays empty in the picture."""
    size = (truth.semantic.shape[0], truth.semantic.shape[1])
    nothing = np.zeros((1, *size), dtype=bool)
    shown = [counts for counts, item in zip(truth.masks, record.objects, strict=True) if not item.ignore]
    parts = [nothing if counts is None else np.asarray(decode([counts], size)) for counts in shown]
    return np.concatenate(parts) if parts else nothing[:0]
