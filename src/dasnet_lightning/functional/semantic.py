"""The semantic loss and the merging of class regions into one class map (paper section 4)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.functional.reduction import LossSum
from dasnet_lightning.types import IGNORE_INDEX, Loss


def graph_zero(parameters: Iterable[Tensor]) -> Loss:
    """A zero that is connected to every parameter, so that each gets a gradient in a step with nothing to learn from."""
    return torch.stack([parameter.sum() for parameter in parameters if parameter.requires_grad]).sum() * 0.0


def semantic_loss(logits: Float[Tensor, "r 2 H W"], labels: Int64[Tensor, "r H W"]) -> LossSum:
    """Softmax cross-entropy over (background, foreground), over the pixels that are not 255."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return LossSum(total, (labels != IGNORE_INDEX).sum())


def merge_regions(
    foreground: Float[Tensor, "r H W"],
    weights: Float[Tensor, "r H W"],
    labels: Int64[Tensor, " r"],
    foreground_threshold: float,
) -> Int64[Tensor, "H W"]:
    """One class map from the foreground probabilities of the regions of an image: the best region wins a pixel.

    A pixel's probabilities below the threshold do not count; the others compete after multiplication with `weights`,
    which are 0 where a region may not answer. What no region wins is 0.
    """
    if not len(labels):
        return torch.zeros(foreground.shape[1:], dtype=torch.int64, device=foreground.device)
    kept = (foreground * weights).masked_fill(foreground < foreground_threshold, 0)
    best, winner = kept.max(dim=0)
    return torch.where(best > 0, labels[winner], torch.zeros_like(winner))
