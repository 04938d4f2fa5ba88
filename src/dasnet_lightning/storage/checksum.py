"""A checksum inside a file of torch's: the comment of its zip archive, which every reader of zip files skips.

torch verifies nothing while it loads, and the sums that a zip archive has of its own cover its members' contents alone: in
a small file they miss one flipped byte in eight. CRC-32 over the whole file misses none, and no burst of up to 32 bits; it
is there for disks and cables, not against people, who could write a new sum as well.
"""

import os
import struct
import zlib
from enum import Enum
from pathlib import Path
from typing import BinaryIO

COMMENT = "dasnet_lightning crc32={:08x} bytes={:016d}"
LENGTH = len(COMMENT.format(0, 0))
_MARK = COMMENT.split("{")[0].encode()
_NO_COMMENT = b"\0\0"  # how an archive without one ends: with the comment's length
_CHUNK = 1 << 20


class Seal(Enum):
    """What the end of a file says: no checksum is there, it matches, or it does not."""

    ABSENT = "absent"
    INTACT = "intact"
    BROKEN = "broken"


class SealingFile:
    """What `torch.save` writes to: passes the bytes on and sums them; `seal` then adds the checksum.

    After a first error nothing is written any more, but all is counted: no exception has to cross torch's C++ writer,
    and in the end `size` is the room that the file would have needed. The error waits in `error`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = 0
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._sum = zlib.crc32(data, self._sum)
        self.size += len(data)
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass

    def seal(self) -> None:
        """Put the checksum at the end and bring the file to the disk. Raises the first OSError that there was."""
        if self.error is not None:
            raise self.error
        self._file.seek(-len(_NO_COMMENT), os.SEEK_END)
        self._file.write(struct.pack("<H", LENGTH) + COMMENT.format(self._sum, self.size).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def check_seal(path: Path) -> Seal:
    """Whether a file carries the checksum, and whether every byte is as it was written."""
    size = path.stat().st_size - LENGTH
    with path.open("rb") as file:
        if size < len(_NO_COMMENT):
            return Seal.ABSENT
        file.seek(size)
        comment = file.read()
        if not comment.startswith(_MARK):
            return Seal.ABSENT
        file.seek(size - len(_NO_COMMENT))
        stated = file.read(len(_NO_COMMENT))
        expected = COMMENT.format(_sum_of(file, size - len(_NO_COMMENT)), size).encode()
    return Seal.INTACT if (stated, comment) == (struct.pack("<H", LENGTH), expected) else Seal.BROKEN


def _sum_of(file: BinaryIO, size: int) -> int:
    """The checksum of the first `size` bytes as they were before the comment came."""
    file.seek(0)
    total = 0
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        total = zlib.crc32(chunk, total)
        size -= len(chunk)
    return zlib.crc32(_NO_COMMENT, total)
