"""Losses that are means over the objects of all processes, so that processes of a small batch equal one of a large batch.

Averaged over the processes, as DDP does with gradients, a loss that every process divides by a count of its own is a mean
of means: a process with one mask weighs it as much as another its hundred. So a loss stays a sum until the counts of all
processes are known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dasnet_lightning.distributed import sum_over_processes, world_size
from dasnet_lightning.types import Loss


@dataclass(frozen=True, eq=False)
class LossSum:
    """A loss that is yet to be divided: the total over `count` things (pixels, boxes) of this process."""

    total: Loss
    count: Int64[Tensor, ""]


def mean_losses(sums: Mapping[str, LossSum]) -> dict[str, Loss]:
    """Each total divided by its count over all processes, times their number; 0 where nothing was counted.

    The average over the processes is the mean over everything. All processes must call it, with the same names: one that
    has nothing to learn from gives totals of 0 and counts of 0.
    """
    counts = sum_over_processes(torch.stack([item.count for item in sums.values()]))
    return {name: share(item.total, count) for (name, item), count in zip(sums.items(), counts, strict=True)}


def share(total: Loss, count: Int64[Tensor, ""] | Float[Tensor, ""]) -> Loss:
    """This process's part of a mean: its total over the count of all processes (1 at least), times their number."""
    return total * world_size() / count.clamp(min=1)


def average_sums(parts: Sequence[LossSum]) -> LossSum:
    """Several answers for the same things: the average of their totals, and the things counted once."""
    return LossSum(torch.stack([part.total for part in parts]).mean(), parts[0].count)
