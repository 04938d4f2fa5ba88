"""Claims of work by processes, also on several machines with a common folder: one file for each claim.

The file names the machine and the process. A claim is stale, and may be taken over, if its process has ended on this machine,
or if nothing was heard from it for `STALE` seconds.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STALE = 900.0
HEARTBEAT = 60.0


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Claim a piece of work while the body runs.

    Args:
        path: the file of the claim; missing parent folders are created.

    Yields:
        Whether this process has the claim. If it is False, another process does the work.
    """
    token = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
    if not _take(path, token):
        yield False
        return
    stopped = threading.Event()
    beat = threading.Thread(target=_keep_alive, args=(path, stopped), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stopped.set()
        beat.join()
        if _read(path) == token:
            path.unlink(missing_ok=True)


def describe_owner(path: Path) -> str:
    """Return who holds a claim, for messages."""
    owner = _read(path)
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"


def _take(path: Path, token: dict[str, Any]) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            with path.open("x") as file:
                json.dump(token, file)
        except FileExistsError:
            if not _is_stale(path):
                return False
            path.unlink(missing_ok=True)
            continue
        return _read(path) == token  # two processes may have removed the same stale claim
    return False


def _is_stale(path: Path) -> bool:
    owner = _read(path)
    try:
        silent = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    if not owner:  # being written, or cut off
        return silent > HEARTBEAT
    if owner["host"] == socket.gethostname() and not _is_running(owner["pid"]):
        return True
    return silent > STALE


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _keep_alive(path: Path, stopped: threading.Event) -> None:
    while not stopped.wait(HEARTBEAT):
        try:
            os.utime(path)
        except FileNotFoundError:
            return


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and {"host", "pid"} <= set(content) else {}
