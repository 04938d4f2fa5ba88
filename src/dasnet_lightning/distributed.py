"""Collectives over the ranks of a distributed training; without a process group they run in the one process.

All functions except `is_distributed`, `rank`, `world_size` and `is_rank_zero` are collective: every rank must call them
in the same order. Never call them under a condition that differs between ranks, or inside `run_on_rank_zero`.

Metrics are evaluated on rank 0 from small records keyed by image id, in the order of the ids, and each id counts once.
Their values therefore do not depend on the number of ranks. Averages over ranks would, because a padded sampler repeats
images.
"""

import signal
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn

Result = TypeVar("Result")
Record = TypeVar("Record")

# signals that stop a training; Windows has no SIGUSR1
STOP_SIGNALS = tuple(number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGUSR1"))

RAISED_ON_RANK_ZERO = "raised on rank 0"  # note on the errors that `run_on_rank_zero` raises on other ranks


def is_distributed() -> bool:
    """Return whether a process group is initialized."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def is_rank_zero() -> bool:
    """Return whether this is rank 0, which writes files and prints."""
    return rank() == 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks as a new tensor without gradient."""
    total = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def run_on_rank_zero(function: Callable[[], Result]) -> Result:
    """Call `function` on rank 0 and return its result on every rank; the other ranks wait.

    An exception is raised on every rank, because the others would wait forever otherwise. The result is pickled, so keep
    it small.
    """
    if world_size() == 1:
        return function()
    outcome: list[Result | Exception | None] = [None]
    if is_rank_zero():
        try:
            outcome = [function()]
        except Exception as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        if not is_rank_zero():
            outcome[0].add_note(RAISED_ON_RANK_ZERO)
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the buffers of rank 0 to all ranks, such as BatchNorm statistics, which each rank updates from its own images.

    DDP does this before each forward pass, but not after the last one.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather_on_rank_zero(value: Result) -> list[Result]:
    """Return the values of all ranks in rank order on rank 0, and an empty list on the others."""
    if world_size() == 1:
        return [value]
    values: list[Result | None] | None = [None] * world_size() if is_rank_zero() else None
    dist.gather_object(value, values)
    return [] if values is None else values  # type: ignore[return-value]


def gather_records(records: Mapping[str, Record]) -> dict[str, Record]:
    """Return the records of all ranks on rank 0, sorted by image id and each id once, and none on the others."""
    # reversed: the record of the lowest rank overwrites those of the same id
    by_rank = reversed(gather_on_rank_zero(dict(records)))
    merged = {image_id: record for rank_records in by_rank for image_id, record in rank_records.items()}
    return dict(sorted(merged.items()))


def evaluate_gathered(records: Mapping[str, Record], evaluate: Callable[[dict[str, Record]], Result]) -> Result:
    """Evaluate the records of all ranks once, on rank 0, and return the result on every rank.

    Every rank must call it, also one without images. An exception in `evaluate` is raised on every rank.
    """
    gathered = gather_records(records)
    return run_on_rank_zero(lambda: evaluate(gathered))
