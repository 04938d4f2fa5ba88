"""Losses of stage two, normalized by the counts of all ranks (paper sections 4 and 5).

DDP averages gradients over the ranks. If each rank divided by its own count, a rank with one mask would weigh that mask as
much as another rank weighs its hundred. So a loss stays a sum until the counts of all ranks are known.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.distributed import sum_over_ranks, world_size
from dasnet_lightning.functional.instance_targets import InstanceSamples
from dasnet_lightning.functional.position_sensitive import inside_logits, instance_scores
from dasnet_lightning.types import IGNORE_INDEX, Loss


@dataclass(frozen=True, eq=False)
class LossSum:
    """A loss that is yet to be divided: the total over `count` things (pixels, boxes) of this process."""

    total: Loss
    count: Int64[Tensor, ""]


def mean_over_ranks(sums: Mapping[str, LossSum]) -> dict[str, Loss]:
    """Each total divided by its count over all processes, times their number; 0 where nothing was counted.

    The average over the processes is the mean over everything. All processes must call it, with the same names: one that
    has nothing to learn from gives totals of 0 and counts of 0.
    """
    counts = sum_over_ranks(torch.stack([item.count for item in sums.values()]))
    return {name: normalize(item.total, count) for (name, item), count in zip(sums.items(), counts, strict=True)}


def normalize(total: Loss, count: Int64[Tensor, ""] | Float[Tensor, ""]) -> Loss:
    """This process's part of a mean: its total over the count of all processes (1 at least), times their number."""
    return total * world_size() / count.clamp(min=1)


def mean_over_passes(parts: Sequence[LossSum]) -> LossSum:
    """Several answers for the same things: the average of their totals, and the things counted once."""
    return LossSum(torch.stack([part.total for part in parts]).mean(), parts[0].count)


def semantic_loss(logits: Float[Tensor, "r 2 H W"], labels: Int64[Tensor, "r H W"]) -> LossSum:
    """Softmax cross-entropy over (background, foreground), over the pixels that are not 255."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return LossSum(total, (labels != IGNORE_INDEX).sum())


def instance_losses(scores: Float[Tensor, "m 2 g g2"], samples: InstanceSamples) -> dict[str, LossSum]:
    """Score loss and mask loss of the sampled boxes; once they are means they have equal weight.

    score: sigmoid cross-entropy of the instance score against matching or not, over the boxes. mask: cross-entropy
    of the softmax over (inside, outside) against the object's mask, over the pixels whose label is known. An object
    without a mask takes part in the first alone.
    """
    logits = instance_scores(scores, samples.grid.valid)
    score = F.binary_cross_entropy_with_logits(logits, samples.positive.to(logits.dtype), reduction="sum")
    known = samples.labels != IGNORE_INDEX
    mask = F.binary_cross_entropy_with_logits(
        inside_logits(scores)[known], samples.labels[known].to(logits.dtype), reduction="sum"
    )
    boxes = torch.tensor(len(logits), device=known.device)
    return {"score": LossSum(score, boxes), "mask": LossSum(mask, known.sum())}


def graph_zero(parameters: Iterable[Tensor]) -> Loss:
    """A zero that is connected to every parameter, so that each gets a gradient in a step with nothing to learn from."""
    return torch.stack([parameter.sum() for parameter in parameters if parameter.requires_grad]).sum() * 0.0
