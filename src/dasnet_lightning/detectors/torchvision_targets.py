"""Conversion of targets to the format of torchvision's detectors, and the handling of ignored objects in them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dasnet_lightning.functional.boxes import covered_fraction
from dasnet_lightning.types import Target

MIN_SIDE = 1e-2  # pixels; torchvision takes the log of a side
IGNORED = -1  # torchvision's samplers skip this label


def torchvision_target(target: Target) -> dict[str, Tensor]:
    """Return the boxes and labels, ignored objects last and labeled IGNORED, without boxes that have no area."""
    order = torch.argsort(target.ignore.to(torch.uint8), stable=True)
    boxes, labels = target.boxes[order].float(), target.labels.masked_fill(target.ignore, IGNORED)[order]
    kept = has_area(boxes)
    return {"boxes": boxes[kept], "labels": labels[kept]}


def split_ignored(target: Target) -> dict[str, Tensor]:
    """Return the "boxes" and "labels" of the real objects, and the boxes of the "ignored" ones."""
    marked = torchvision_target(target)
    real = marked["labels"] != IGNORED
    return {"boxes": marked["boxes"][real], "labels": marked["labels"][real], "ignored": marked["boxes"][~real]}


def inside_ignored(boxes: Float[Tensor, "n 4"], ignored: Float[Tensor, "m 4"]) -> Bool[Tensor, " n"]:
    """Mark boxes with more than half of their area in one ignored object; they must not be negatives."""
    return (covered_fraction(boxes, ignored) > 0.5).any(dim=0)


def has_area(boxes: Float[Tensor, "n 4"]) -> Bool[Tensor, " n"]:
    """Mark boxes with more than MIN_SIDE pixels of width and height."""
    return ((boxes[:, 2:] - boxes[:, :2]) > MIN_SIDE).all(dim=1)
