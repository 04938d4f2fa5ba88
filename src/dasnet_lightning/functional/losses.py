"""Losses of stage two as sums, and their means over all ranks (paper sections 4 and 5).

DDP averages gradients over the ranks. If each rank divided by its own count, the only mask of one rank would weigh as much
as a hundred masks of another. So a loss stays a sum (`LossSum`) until the counts of all ranks are known (`mean_over_ranks`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.distributed import sum_over_ranks, world_size
from dasnet_lightning.functional.instance_targets import InstanceSamples
from dasnet_lightning.functional.position_sensitive import inside_logits, instance_scores
from dasnet_lightning.types import IGNORE_INDEX, Loss

BOUNDARY_CELLS = 2


@dataclass(frozen=True, eq=False)
class LossSum:
    """Loss of this rank before it is averaged.

    Attributes:
        total: sum over the samples.
        count: number of samples, which are pixels or boxes.
    """

    total: Loss
    count: Int64[Tensor, ""]


def semantic_loss(logits: Float[Tensor, "r 2 H W"], labels: Int64[Tensor, "r H W"]) -> LossSum:
    """Compute the softmax cross-entropy over (background, foreground); pixels labeled 255 are ignored."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return LossSum(total, (labels != IGNORE_INDEX).sum())


def instance_losses(scores: Float[Tensor, "m 2 g g2"], samples: InstanceSamples) -> dict[str, LossSum]:
    """Compute the score loss and the mask loss of the sampled boxes; their means have equal weight.

    An object without a mask takes part in the score loss only.

    Args:
        scores: inside and outside scores of each box at the pixels of `samples.grid`.
        samples: the training boxes with the labels of these pixels.

    Returns:
        "score": sigmoid cross-entropy of the instance score against positive or negative, over the boxes.
        "mask": cross-entropy of the softmax over (inside, outside) against the object's mask, over the known pixels.
    """
    logits = instance_scores(scores, samples.grid.valid)
    score = F.binary_cross_entropy_with_logits(logits, samples.positive.to(logits.dtype), reduction="sum")
    known = samples.labels != IGNORE_INDEX
    mask = F.binary_cross_entropy_with_logits(
        inside_logits(scores)[known], samples.labels[known].to(logits.dtype), reduction="sum"
    )
    num_boxes = torch.tensor(len(logits), device=known.device)
    return {"score": LossSum(score, num_boxes), "mask": LossSum(mask, known.sum())}


def boundary_loss(
    logits: Float[Tensor, "n g g"], labels: Bool[Tensor, "n g g"], known: Bool[Tensor, "n g g"], weight: float
) -> LossSum:
    """Compute the cross-entropy of the cells of the grids of boxes; cells near the boundary of the object count more.

    Args:
        logits: logit of each cell.
        labels: whether a cell belongs to the object.
        known: whether the label of a cell is known; other cells are ignored.
        weight: a cell within `BOUNDARY_CELLS` cells of the boundary counts 1 + weight, any other 1.
    """
    targets, size = labels.to(logits.dtype), 2 * BOUNDARY_CELLS + 1
    spread = F.max_pool2d(torch.stack([targets, -targets], dim=1), size, stride=1, padding=BOUNDARY_CELLS)
    near_boundary = spread.sum(dim=1) > 0  # the largest label around is not the smallest
    weights = (1 + weight * near_boundary) * known
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return LossSum((losses * weights).sum(), known.sum())


def mean_over_passes(sums: Sequence[LossSum]) -> LossSum:
    """Average the losses of several decodes of the same samples; the samples count once."""
    return LossSum(torch.stack([item.total for item in sums]).mean(), sums[0].count)


def mean_over_ranks(sums: Mapping[str, LossSum]) -> dict[str, Loss]:
    """Divide each total by its count over all ranks and multiply by their number, so that DDP's average is the mean.

    A loss without samples is 0. Every rank must call this with the same names; a rank without samples passes zeros.
    """
    counts = sum_over_ranks(torch.stack([item.count for item in sums.values()]))
    return {name: normalize(item.total, count) for (name, item), count in zip(sums.items(), counts, strict=True)}


def normalize(total: Loss, count: Int64[Tensor, ""] | Float[Tensor, ""]) -> Loss:
    """Return this rank's part of a mean: `total` over the `count` of all ranks (at least 1), times their number."""
    return total * world_size() / count.clamp(min=1)


def graph_zero(parameters: Iterable[Tensor]) -> Loss:
    """Return a zero that is connected to every trainable parameter, for a step that has no sample to learn from."""
    return torch.stack([parameter.sum() for parameter in parameters if parameter.requires_grad]).sum() * 0.0
