"""Atomic writing of small files."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes, synced: bool = True) -> None:
    """Write a file atomically: write a temporary file in the same folder, then rename it.

    Args:
        path: the file; missing parent folders are created.
        content: the bytes of the file.
        synced: whether to flush to disk, so that a power failure leaves either the old or the new file. False is faster,
            for files whose damage is detected and that can be computed again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp creates files that only their owner can read
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, and keep the file that it replaces, see `replace_bytes`."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and keep the file that it replaces.

    `train.json` is kept as `train.json.previous`, which readers of data sets do not take for labels.
    """
    target = Path(path)
    if target.exists():
        copy = target.with_name(f".{target.name}.previous.{os.getpid()}")
        shutil.copy2(target, copy)
        copy.replace(target.with_name(f"{target.name}.previous"))
    write_bytes(target, content)
