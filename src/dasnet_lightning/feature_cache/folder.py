"""A folder of files that can be made again, of a bounded size in all, shared by processes that know nothing of each other.

The files that nobody has used for longest leave first. Those that this object itself has used stay: who goes through more
files than fit, again and again, as validation does, would otherwise find every one gone just before its turn.
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

SCANS = 16  # the folder is read again after writing this part of the bound, to see what other processes wrote
ABANDONED = 3600.0  # seconds after which a temporary file belongs to a process that was killed


class BoundedFolder:
    """Files named by 64 hexadecimal digits and `suffix`, of at most max_bytes together; no other file is touched.

    Each process writing at the same time may exceed the bound by a sixteenth for a while. Where nothing can be written,
    or all that is there is in use, one warning says so and later files are not kept. Raises ConfigError where there is
    no folder and none can be made.
    """

    def __init__(self, folder: str | Path, max_bytes: int, suffix: str) -> None:
        self.folder = Path(folder).expanduser()
        self.max_bytes = max_bytes
        self.suffix = suffix
        self._own: dict[str, int] = {}  # sizes of the files that this object used
        self._others: OrderedDict[str, tuple[int, int]] = OrderedDict()  # (size, time of use), longest ago first
        self._total = 0
        self._written: int | None = None  # bytes since the folder was read; None: never read
        self._closed = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.folder}: is no folder and cannot be made one ({error.strerror})") from error

    def find(self, name: str) -> Path | None:
        """The file of that name, which counts as used from now on, or None."""
        path = self._path(name)
        try:
            size = path.stat().st_size
        except OSError:
            return None
        with suppress(OSError):  # a folder that may only be read
            os.utime(path)
        self._take(name, size)
        return path

    def write(self, name: str, content: bytes) -> None:
        """Keep a file; others go where there is no room for it."""
        if self._closed:
            return
        try:
            if not self._make_room(name, len(content)):
                self._close(f"holds {self.max_bytes / 1e9:.1f} GB of what is in use, no more is kept; allow it more")
                return
            write_bytes(self._path(name), content, synced=False)
        except OSError as error:
            self._close(f"cannot be written ({error.strerror or error}), no more is kept")
            return
        self._take(name, len(content))
        self._written = (self._written or 0) + len(content)

    def remove(self, name: str) -> None:
        """Drop a file, if it is there and may be removed."""
        with suppress(OSError):
            self._path(name).unlink()
        self._forget(name)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{self.suffix}"

    def _close(self, reason: str) -> None:
        self._closed = True
        warnings.warn(f"{self.folder}: {reason}", stacklevel=4)

    def _take(self, name: str, size: int) -> None:
        self._forget(name)
        self._own[name] = size
        self._total += size

    def _forget(self, name: str) -> None:
        self._total -= self._own.pop(name, 0) + self._others.pop(name, (0, 0))[0]

    def _make_room(self, name: str, size: int) -> bool:
        """Remove what nobody has used for longest until there is room; False where what is in use fills the bound."""
        if self._written is None or self._written > self.max_bytes // SCANS:
            self._scan()
        self._forget(name)  # it is replaced
        while self._total + size > self.max_bytes and self._others:
            other, (_, known) = next(iter(self._others.items()))
            path = self._path(other)
            try:
                used = path.stat().st_mtime_ns
            except FileNotFoundError:  # another process was quicker
                used = known
            if used > known:  # by another process, since the folder was read
                self._others[other] = (self._others[other][0], used)
                self._others.move_to_end(other)
                continue
            path.unlink(missing_ok=True)
            self._forget(other)
        return self._total + size <= self.max_bytes

    def _scan(self) -> None:
        """Read what the folder holds, and clear away what killed processes left half written."""
        pattern = re.compile(rf"(\.?)([0-9a-f]{{64}}){re.escape(self.suffix)}(\..*)?")
        found = []
        for entry in os.scandir(self.folder):
            match = pattern.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(FileNotFoundError):  # another process was quicker
                about = entry.stat()
                if not match[1]:
                    found.append((about.st_mtime_ns, match[2], about.st_size))
                elif about.st_mtime < time.time() - ABANDONED:
                    Path(entry.path).unlink()
        sizes = {name: size for _, name, size in found}
        self._own = {name: sizes[name] for name in self._own if name in sizes}
        self._others = OrderedDict((name, (size, used)) for used, name, size in sorted(found) if name not in self._own)
        self._total = sum(sizes.values())
        self._written = 0
