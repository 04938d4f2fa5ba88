"""The records of all processes brought together, so that a figure does not depend on how many processes there are.

Averages of averages depend on the sharding, and a padded sampler shows some images twice. So small records by image id
travel to rank 0, each id counts once, and they are evaluated there in the order of their ids; all ranks get the result.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch.distributed as dist

Record = TypeVar("Record")
Result = TypeVar("Result")


def gather_records(records: Mapping[str, Record]) -> dict[str, Record]:
    """The records of all processes on rank 0, sorted by image id; nothing on the others. A repeated id counts once."""
    parts: list[Mapping[str, Record]] = [records]
    if _distributed():
        parts = [{} for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else []
        dist.gather_object(dict(records), parts if dist.get_rank() == 0 else None)
    # the lowest rank's record stays where an id is repeated
    merged = {image_id: record for part in reversed(parts) for image_id, record in part.items()}
    return dict(sorted(merged.items()))


def evaluate_gathered(records: Mapping[str, Record], evaluate: Callable[[dict[str, Record]], Result]) -> Result:
    """Evaluate the records of all processes once, on rank 0, and return the result on every rank.

    Every rank must call it, also one without images. An exception of `evaluate` is raised on every rank: else the others
    would wait for a result for ever.
    """
    gathered = gather_records(records)
    if not _distributed():
        return evaluate(gathered)
    outcome: list[Result | Exception | None] = [None]
    if dist.get_rank() == 0:
        try:
            outcome = [evaluate(gathered)]
        except Exception as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
