"""The records of all processes brought together, so that a figure does not depend on how many processes there are.

Averages of averages depend on the sharding, and a padded sampler shows some images twice. So small records by image id
travel to rank 0, each id counts once, and they are evaluated there in the order of their ids; all ranks get the result.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from dasnet_lightning.processes import gather_on_first, once

Record = TypeVar("Record")
Result = TypeVar("Result")


def gather_records(records: Mapping[str, Record]) -> dict[str, Record]:
    """The records of all processes on rank 0, sorted by image id; nothing on the others. A repeated id counts once."""
    # the lowest rank's record stays where an id is repeated
    parts = reversed(gather_on_first(dict(records)))
    merged = {image_id: record for part in parts for image_id, record in part.items()}
    return dict(sorted(merged.items()))


def evaluate_gathered(records: Mapping[str, Record], evaluate: Callable[[dict[str, Record]], Result]) -> Result:
    """Evaluate the records of all processes once, on rank 0, and return the result on every rank.

    Every rank must call it, also one without images. An exception of `evaluate` is raised on every rank.
    """
    gathered = gather_records(records)
    return once(lambda: evaluate(gathered))
