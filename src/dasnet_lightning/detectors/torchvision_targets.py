"""Targets as torchvision's detectors take them, and what an ignored object means for their anchors and proposals."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dasnet_lightning.functional.boxes import covered_fraction
from dasnet_lightning.types import Target

MIN_SIDE = 1e-2  # pixels; torchvision takes the log of a box's side
IGNORED = -1  # torchvision's samplers leave this label out


def torchvision_target(target: Target) -> dict[str, Tensor]:
    """Boxes and labels with the ignored objects last and marked; boxes without area are left out."""
    order = torch.argsort(target.ignore.to(torch.uint8), stable=True)
    boxes, labels = target.boxes[order].float(), target.labels.masked_fill(target.ignore, IGNORED)[order]
    kept = has_area(boxes)
    return {"boxes": boxes[kept], "labels": labels[kept]}


def split_ignored(target: Target) -> dict[str, Tensor]:
    """Boxes and labels of the real objects, and the boxes of the ignored ones under their own name."""
    marked = torchvision_target(target)
    real = marked["labels"] != IGNORED
    return {"boxes": marked["boxes"][real], "labels": marked["labels"][real], "ignored": marked["boxes"][~real]}


def inside_ignored(boxes: Float[Tensor, "n 4"], ignored: Float[Tensor, "m 4"]) -> Bool[Tensor, " n"]:
    """Boxes with more than half of their area in an ignored object: they must not serve as negatives."""
    return (covered_fraction(boxes, ignored) > 0.5).any(dim=0)


def has_area(boxes: Float[Tensor, "n 4"]) -> Bool[Tensor, " n"]:
    """Boxes that are wide and tall enough to be one."""
    return ((boxes[:, 2:] - boxes[:, :2]) > MIN_SIDE).all(dim=1)
