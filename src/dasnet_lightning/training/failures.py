"""One-sentence errors for failures from outside: a killed loader process, a lost rank, a full disk."""

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from dasnet_lightning.errors import DasnetError, TrainingError

SHARING_MODULE = "resource_sharer.py"  # of multiprocessing: hands shared memory from one process to another


@contextmanager
def explained_failures() -> Iterator[None]:
    """Turn long errors of torch and the system into a TrainingError; the library's own errors pass unchanged."""
    try:
        yield
    except DasnetError as error:
        # a loader process wraps its error in a traceback
        caught = str(error).startswith("Caught ")
        raise (type(error)(_last_sentence(str(error))) if caught else error) from error.__cause__
    except RuntimeError as error:
        explanation = _explain(str(error))
        if explanation:
            raise TrainingError(explanation) from error
        raise
    except (OSError, EOFError) as error:
        if _is_lost_batch(error):
            raise TrainingError(_explain_lost_loader(repr(error))) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            place = f"{error.filename}: " if error.filename else ""
            raise TrainingError(f"{place}{error.strerror}; make room and start the same command again") from error
        raise


def _explain(message: str) -> str:
    first = message.strip().splitlines()[0] if message.strip() else ""
    if "DataLoader worker" in message:
        return _explain_lost_loader(first)
    if "closed by peer" in message or "Connection reset by peer" in message:
        return "another process of this run ended; its own message says why"
    return ""


def _explain_lost_loader(reason: str) -> str:
    return (
        f"a loader process ended ({reason}); the system kills processes when memory runs out: use fewer --num-workers, "
        "and start the same command again to continue"
    )


def _is_lost_batch(error: BaseException) -> bool:
    """Whether a batch could not be fetched because its loader process was killed while it handed the batch over.

    torch notices a dead loader process only between batches. Within one, the socket of the shared memory fails.
    """
    calls = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.endswith(SHARING_MODULE) for name in calls)


def _last_sentence(message: str) -> str:
    return message.strip().splitlines()[-1].partition(": ")[2]
