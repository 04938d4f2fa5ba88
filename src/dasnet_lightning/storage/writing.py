"""Writing of torch files such that a valid file exists at every moment, even if the process or the machine dies.

The steps are, each of them one function that takes effect with one system call:

1. Write a temporary file in the same folder, seal it and flush it to disk.
2. Keep the existing file as `NAME.previous`.
3. Rename the temporary file.
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
_NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file exceeds the size limit (ulimit -f)",
}


def previous_of(path: Path) -> Path:
    """Return the path of the previous version of a file: `last.previous.ckpt` for `last.ckpt`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_tensors(content: Any, path: Path, keep: bool = True) -> None:
    """Write a file with `torch.save` atomically and seal it with a checksum.

    Args:
        content: what to save, as for `torch.save`.
        path: the file; missing parent folders are created.
        keep: whether to keep the existing file as `previous_of(path)`.

    Raises:
        CheckpointError: if the disk is full (with the required and the free bytes) or the folder is not writable. All
            existing files are then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    required = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with temporary.open("wb") as file:
            sealing = SealingFile(file)
            torch.save(content, sealing)  # type: ignore[arg-type]
            required = sealing.size + LENGTH
            sealing.seal()
        if keep and path.exists():
            keep_previous(path)
        put_in_place(temporary, path)
    except OSError as error:
        _remove(temporary)  # before the free space is measured
        raise CheckpointError(_describe_failure(path, error, required)) from error
    finally:
        _remove(temporary)


def keep_previous(path: Path) -> None:
    """Keep a file as `previous_of(path)` by a second hard link and replace the older one."""
    second = path.with_name(f".{previous_of(path).name}.{os.getpid()}.tmp")
    _remove(second)
    try:
        second.hardlink_to(path)
    except OSError:  # no hard links on this file system: for a moment only the previous file exists
        path.replace(previous_of(path))
    else:
        second.replace(previous_of(path))
        _remove(second)  # renaming does nothing if a crash left both names on one file
    sync_folder(path.parent)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a complete file and flush the folder, so that the name lasts like the content."""
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, on POSIX systems only."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes; keep those of processes that still run."""
    for path in folder.glob(".*.tmp"):
        match = _LEFTOVER.fullmatch(path.name)
        if match and not _is_another_process(int(match["pid"])):
            _remove(path)


def _is_another_process(pid: int) -> bool:
    """Return whether another process with this id runs; assume so if the system is not POSIX."""
    if pid == os.getpid() or os.name != "posix":  # on Windows os.kill would end it
        return pid != os.getpid()
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs as another user
        return True
    return True


def _describe_failure(path: Path, error: OSError, required: int) -> str:
    if error.errno not in _NO_SPACE:
        return f"{path}: cannot be written: {error.strerror or error}"
    free = shutil.disk_usage(path.parent).free
    return (
        f"{path}: not written, {_NO_SPACE[error.errno]}: {required:,} bytes are needed, {free:,} are free; existing "
        "checkpoints are unchanged, free some space and start again"
    )


def _remove(path: Path) -> None:
    with suppress(OSError):  # missing, or an error of the folder that writing reports
        path.unlink()
