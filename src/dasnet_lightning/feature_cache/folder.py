"""Folder of recomputable files with a bound on its total size, shared by independent processes.

The least recently used files are removed first, except those that this object used itself. A pure LRU policy would never
hit in a loop over more files than fit, such as repeated validation.
"""

import os
import re
import time
import warnings
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.storage.atomic import write_bytes

SCANS_PER_BOUND = 16  # the folder is scanned again after every max_bytes / 16 of writes, for files of other processes
ABANDONED = 3600.0  # seconds; an older temporary file belongs to a killed process


class BoundedFolder:
    """Folder of files named by 64 hexadecimal digits and `suffix`; no other file in it is touched.

    Each concurrent writer can exceed the bound by a sixteenth for a while. If a write fails, or if files in use fill the
    bound, one warning is issued and later files are not stored.

    Args:
        folder: created if it does not exist.
        max_bytes: bound on the total size of the files in bytes.
        suffix: suffix of the file names with the dot.

    Raises:
        ConfigError: if the folder cannot be created.
    """

    def __init__(self, folder: str | Path, max_bytes: int, suffix: str) -> None:
        self.folder = Path(folder).expanduser()
        self.max_bytes = max_bytes
        self.suffix = suffix
        self._own: dict[str, int] = {}  # size of each file that this object used
        self._others: OrderedDict[str, tuple[int, int]] = (
            OrderedDict()
        )  # (size, time of last use), least recently used first
        self._total = 0
        self._written: int | None = None  # bytes since the last scan; None before the first
        self._closed = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot create this folder ({error.strerror})") from error

    def find(self, name: str) -> Path | None:
        """Return the path of a file and mark it as used, or return None if it does not exist."""
        path = self._path(name)
        try:
            size = path.stat().st_size
        except OSError:
            return None
        with suppress(OSError):  # a read-only folder
            os.utime(path)
        self._mark_used(name, size)
        return path

    def write(self, name: str, content: bytes) -> None:
        """Write a file, and remove others to make room for it."""
        if self._closed:
            return
        try:
            if not self._make_room(name, len(content)):
                self._close(f"files in use fill its {self.max_bytes / 1e9:.1f} GB, no more are stored; raise the limit")
                return
            write_bytes(self._path(name), content, synced=False)
        except OSError as error:
            self._close(f"cannot be written ({error.strerror or error}), no more files are stored")
            return
        self._mark_used(name, len(content))
        self._written = (self._written or 0) + len(content)

    def remove(self, name: str) -> None:
        """Remove a file if it exists and can be removed."""
        with suppress(OSError):
            self._path(name).unlink()
        self._forget(name)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{self.suffix}"

    def _close(self, reason: str) -> None:
        """Stop storing files, with a warning."""
        self._closed = True
        warnings.warn(f"{self.folder}: {reason}", stacklevel=4)

    def _mark_used(self, name: str, size: int) -> None:
        self._forget(name)
        self._own[name] = size
        self._total += size

    def _forget(self, name: str) -> None:
        self._total -= self._own.pop(name, 0) + self._others.pop(name, (0, 0))[0]

    def _make_room(self, name: str, size: int) -> bool:
        """Remove the least recently used files until `size` fits; return False if files in use fill the bound."""
        if self._written is None or self._written > self.max_bytes // SCANS_PER_BOUND:
            self._scan()
        self._forget(name)  # it will be overwritten
        while self._total + size > self.max_bytes and self._others:
            oldest, (oldest_size, known_use) = next(iter(self._others.items()))
            path = self._path(oldest)
            try:
                last_use = path.stat().st_mtime_ns
            except FileNotFoundError:  # removed by another process
                last_use = known_use
            if last_use > known_use:  # used by another process since the last scan
                self._others[oldest] = (oldest_size, last_use)
                self._others.move_to_end(oldest)
                continue
            path.unlink(missing_ok=True)
            self._forget(oldest)
        return self._total + size <= self.max_bytes

    def _scan(self) -> None:
        """List the files of the folder, and remove temporary files of killed processes."""
        pattern = re.compile(rf"(\.?)([0-9a-f]{{64}}){re.escape(self.suffix)}(\..*)?")
        files = []
        for entry in os.scandir(self.folder):
            match = pattern.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(FileNotFoundError):  # removed by another process
                status = entry.stat()
                if not match[1]:
                    files.append((status.st_mtime_ns, match[2], status.st_size))
                elif status.st_mtime < time.time() - ABANDONED:
                    Path(entry.path).unlink()
        sizes = {name: size for _, name, size in files}
        self._own = {name: sizes[name] for name in self._own if name in sizes}
        self._others = OrderedDict((name, (size, used)) for used, name, size in sorted(files) if name not in self._own)
        self._total = sum(sizes.values())
        self._written = 0
