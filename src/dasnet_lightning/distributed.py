"""The processes of a distributed training, as far as the library must know of them; one process is the common case.

All functions here but `rank`, `world_size` and `is_rank_zero` are collective: every process calls them, and in the same
order. So they never stand where only some processes come by: not after an `if` about the process's own images, nor in
what `run_on_rank_zero` runs.

The records of all processes brought together, so that a figure does not depend on how many processes there are.

Averages of averages depend on the sharding, and a padded sampler shows some images twice. So small records by image id
travel to rank 0, each id counts once, and they are evaluated there in the order of their ids; all ranks get the result.
"""

import signal
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn

Result = TypeVar("Result")

# what a training is told to stop by; Windows has no SIGUSR1
STOP_SIGNALS = tuple(number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGUSR1"))

RAISED_ON_RANK_ZERO = "raised in the first process"  # a note on the errors that `once` hands on


def is_distributed() -> bool:
    """Whether this process is one of a group, be it of one."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def is_rank_zero() -> bool:
    """Whether this is the process that writes the files and speaks to people."""
    return rank() == 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of all processes' values, without a gradient; a copy."""
    total = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def run_on_rank_zero(function: Callable[[], Result]) -> Result:
    """What `function` returns in the first process, in all of them; the others wait and do not run it.

    An exception is raised in all: else the others would wait for ever. Results travel pickled: small ones only.
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
    """Give all processes the first one's buffers: BatchNorm's statistics, which every process takes of its own images.

    DDP does so before each forward, but nobody does after the last one.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather_on_rank_zero(value: Result) -> list[Result]:
    """The values of all processes, by their rank, in the first one; an empty list in the others."""
    if world_size() == 1:
        return [value]
    values: list[Result | None] | None = [None] * world_size() if is_rank_zero() else None
    dist.gather_object(value, values)
    return [] if values is None else values  # type: ignore[return-value]


Record = TypeVar("Record")


def gather_records(records: Mapping[str, Record]) -> dict[str, Record]:
    """The records of all processes on rank 0, sorted by image id; nothing on the others. A repeated id counts once."""
    # the lowest rank's record stays where an id is repeated
    parts = reversed(gather_on_rank_zero(dict(records)))
    merged = {image_id: record for part in parts for image_id, record in part.items()}
    return dict(sorted(merged.items()))


def evaluate_gathered(records: Mapping[str, Record], evaluate: Callable[[dict[str, Record]], Result]) -> Result:
    """Evaluate the records of all processes once, on rank 0, and return the result on every rank.

    Every rank must call it, also one without images. An exception of `evaluate` is raised on every rank.
    """
    gathered = gather_records(records)
    return run_on_rank_zero(lambda: evaluate(gathered))
