"""One-sentence errors for failures from outside: a killed loader process, a lost rank, a full disk."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from dasnet_lightning.errors import DasnetError, TrainingError


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
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            place = f"{error.filename}: " if error.filename else ""
            raise TrainingError(f"{place}{error.strerror}; make room and start the same command again") from error
        raise


def _explain(message: str) -> str:
    first = message.strip().splitlines()[0] if message.strip() else ""
    if "DataLoader worker" in message:
        return (
            f"a loader process ended ({first}); the system kills processes when memory runs out: use fewer --num-workers, "
            "and start the same command again to continue"
        )
    if "closed by peer" in message or "Connection reset by peer" in message:
        return "another process of this run ended; its own message says why"
    return ""


def _last_sentence(message: str) -> str:
    return message.strip().splitlines()[-1].partition(": ")[2]
