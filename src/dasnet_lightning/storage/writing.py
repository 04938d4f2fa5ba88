"""Writing a file of torch's so that a good one is there at every moment, whenever the process or the machine dies.

The order is: a temporary file in the same folder, complete, sealed and on the disk; then what the name held becomes
`NAME.previous`; then the temporary file takes the name. Each of these is one function, one system call decides each.
"""

import errno
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.storage.checksum import LENGTH, SealingFile

_LEFTOVER = re.compile(r"\..+\.(?P<pid>\d+)\.tmp")
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no file may grow so large here (ulimit -f)",
}


def previous_of(path: Path) -> Path:
    """Where the file that `path` held before is kept: `last.ckpt` and `last.previous.ckpt`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_tensors(content: Any, path: Path, keep: bool = True) -> None:
    """Write a file with `torch.save`, sealed, whole or not at all; with `keep` the file before it stays beside it.

    Raises CheckpointError where there is no room (the message says how much is needed and how much is free) or the
    folder cannot be written to; all older files are then as they were.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    room = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with temporary.open("wb") as file:
            sealing = SealingFile(file)
            torch.save(content, sealing)  # type: ignore[arg-type]
            room = sealing.size + LENGTH
            sealing.seal()
        if keep and path.exists():
            keep_previous(path)
        put_in_place(temporary, path)
    except OSError as error:
        _remove(temporary)  # before the room is measured
        raise CheckpointError(_complaint(path, error, room)) from error
    finally:
        _remove(temporary)


def keep_previous(path: Path) -> None:
    """Give the file a second name; the one that it replaces has been superseded twice."""
    second = path.with_name(f".{previous_of(path).name}.{os.getpid()}.tmp")
    _remove(second)
    try:
        second.hardlink_to(path)
    except OSError:  # a file system without hard links: for a moment there is the previous file alone
        path.replace(previous_of(path))
    else:
        second.replace(previous_of(path))
        _remove(second)  # where both names were of one file already, which a crash leaves, renaming does nothing
    sync_folder(path.parent)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a complete file, and make the name as lasting as the content."""
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; those of writers that still run stay."""
    for path in folder.glob(".*.tmp"):
        found = _LEFTOVER.fullmatch(path.name)
        if found and not _another_runs(int(found["pid"])):
            _remove(path)


def _another_runs(pid: int) -> bool:
    if pid == os.getpid() or os.name != "posix":  # elsewhere a process cannot be asked without harm
        return pid != os.getpid()
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to somebody else
        return True
    return True


def _complaint(path: Path, error: OSError, room: int) -> str:
    if error.errno not in _FULL:
        return f"{path}: cannot be written: {error.strerror or error}"
    free = shutil.disk_usage(path.parent).free
    return (
        f"{path}: not written, {_FULL[error.errno]}: {room:,} bytes are needed, {free:,} are free; checkpoints that were "
        "there before are unharmed, make room and start again"
    )


def _remove(path: Path) -> None:
    with suppress(OSError):  # not there, or the folder's trouble, which is told by whoever writes
        path.unlink()
