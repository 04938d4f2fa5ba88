"""Checksum of a whole torch file, stored in the comment of its zip archive, which readers of zip files ignore.

torch verifies nothing when it loads a file. The checksums of a zip archive cover the contents of its members only: in a
small file they miss one flipped byte in eight. CRC-32 over the whole file detects every flipped byte and every burst of
up to 32 bits. It protects against faulty disks and transfers, not against tampering.
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
_NO_COMMENT = b"\0\0"  # the last bytes of an archive without a comment: the length of the comment
_CHUNK = 1 << 20


class Seal(Enum):
    """State of the checksum of a file: absent, matching, or not matching."""

    ABSENT = "absent"
    INTACT = "intact"
    BROKEN = "broken"


class SealingFile:
    """File object for `torch.save` that computes the checksum of what it writes; `seal` then appends it.

    After the first OSError it keeps counting bytes but writes none, so that no exception passes through torch's C++
    writer. `seal` raises that error.

    Attributes:
        size: number of bytes received, which is the size that a file cut short would have needed.
        error: the first OSError, or None.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._crc = 0
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._crc = zlib.crc32(data, self._crc)
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
        """Append the checksum and flush the file to disk; raise the first OSError of writing, if any."""
        if self.error is not None:
            raise self.error
        self._file.seek(-len(_NO_COMMENT), os.SEEK_END)
        self._file.write(struct.pack("<H", LENGTH) + COMMENT.format(self._crc, self.size).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def check_seal(path: Path) -> Seal:
    """Return whether a file has the checksum and whether it matches the bytes of the file."""
    size = path.stat().st_size - LENGTH
    with path.open("rb") as file:
        if size < len(_NO_COMMENT):
            return Seal.ABSENT
        file.seek(size)
        comment = file.read()
        if not comment.startswith(_MARK):
            return Seal.ABSENT
        file.seek(size - len(_NO_COMMENT))
        comment_length = file.read(len(_NO_COMMENT))
        expected = COMMENT.format(_compute_crc(file, size - len(_NO_COMMENT)), size).encode()
    return Seal.INTACT if (comment_length, comment) == (struct.pack("<H", LENGTH), expected) else Seal.BROKEN


def _compute_crc(file: BinaryIO, size: int) -> int:
    """Return the checksum of the first `size` bytes and the end of an archive without a comment."""
    file.seek(0)
    crc = 0
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        crc = zlib.crc32(chunk, crc)
        size -= len(chunk)
    return zlib.crc32(_NO_COMMENT, crc)
