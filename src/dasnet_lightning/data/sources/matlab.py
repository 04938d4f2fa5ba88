"""Reading of MATLAB files of version 5: a header of 128 bytes, then elements that may be compressed.

Elements are inflated here, up to a limit, before scipy parses them, so that a decompression bomb costs nothing.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

from dasnet_lightning.data.images import describe_file
from dasnet_lightning.errors import DataError

MAT_HEADER_BYTES = 128
MAT_COMPRESSED = 15  # type of a compressed element
MAX_INFLATED_BYTES = 256_000_000


def load_variable(file: Path, name: str) -> Any:
    """Load one variable of a MATLAB file."""
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(_inflate(file.read_bytes())), variable_names=(name,))
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        raise DataError(f"{file}: cannot be read as a MATLAB file, {_describe_mat_file(file)} ({error})") from error
    if name not in content:
        raise DataError(f"{file}: has no variable {name}, expected a file of SBD's inst/")
    return content[name]


def _inflate(data: bytes) -> bytes:
    """Return the file with all elements uncompressed. Raises ValueError if it is truncated or inflates beyond the limit."""
    if not data.startswith(b"MATLAB 5.0") or data[126:MAT_HEADER_BYTES] not in (b"IM", b"MI"):
        raise ValueError("the header is not that of MATLAB 5.0")
    byte_order = "<" if data[126:MAT_HEADER_BYTES] == b"IM" else ">"
    parts, start, budget = [data[:MAT_HEADER_BYTES]], MAT_HEADER_BYTES, MAX_INFLATED_BYTES
    while start < len(data):
        element_type, length = struct.unpack_from(f"{byte_order}II", data, start)
        end = start + 8 + length
        if end > len(data):
            raise ValueError(f"an element of {length} bytes is truncated")
        if element_type == MAT_COMPRESSED:
            inflater = zlib.decompressobj()
            parts.append(inflater.decompress(data[start + 8 : end], budget))
            if inflater.unconsumed_tail or not inflater.eof:
                raise ValueError("a compressed element is truncated, or inflates to more bytes than any image needs")
        else:
            parts.append(data[start:end])
        start, budget = end, max(budget - len(parts[-1]), 1)
    return b"".join(parts)


def _describe_mat_file(file: Path) -> str:
    if not file.is_file():
        return describe_file(file)
    with file.open("rb") as stream:
        head = stream.read(10)
    if head == b"MATLAB 7.3":
        return "it was saved in version 7.3, expected version 5 ('save -v7')"
    return "it is truncated or damaged" if head == b"MATLAB 5.0" else describe_file(file, "MATLAB file")
