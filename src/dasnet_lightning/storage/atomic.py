"""Writing small files so that nobody ever reads half of one."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes, synced: bool = True) -> None:
    """Write a file atomically: a temporary file in the same folder, then renamed.

    synced: also after a power failure there is the old file or the new one. False is quicker, for what can be told
    from damage and made again.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp makes files that only their owner may read
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, and keep the file that it replaces."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and keep the file that it replaces beside it.

    `train.json` is kept as `train.json.previous`, a name that readers of data sets do not take for labels.
    """
    target = Path(path)
    if target.exists():
        copy = target.with_name(f".{target.name}.previous.{os.getpid()}")
        shutil.copy2(target, copy)
        copy.replace(target.with_name(f"{target.name}.previous"))
    write_bytes(target, content)
