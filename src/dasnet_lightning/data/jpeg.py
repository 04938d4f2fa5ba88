"""The fast way for ordinary photographs: OpenCV decodes a JPEG straight into the array, Pillow by way of two copies.

OpenCV answers a picture where Pillow raises: grey pixels for a file that is cut short (its older versions), whatever it
had read where the data are broken by a stray marker, pixels from tables that it invents where the file has none. So it
gets only files whose every marker is where a sound baseline JPEG has it; all others are Pillow's. The pixels are the
same: both use libjpeg-turbo with its defaults.
"""

import re

import cv2
import numpy as np
from jaxtyping import UInt8

BASELINE, TABLES, START_OF_SCAN = (0xC0, 0xC1), 0xC4, 0xDA
PLAIN = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
STRAY = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # in a scan only stuffed bytes and restarts follow 0xFF


def decode_sound_jpeg(data: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """Decode a baseline JPEG of one scan to RGB; None where the file is another kind, or not sound."""
    scan = _find_scan(data)
    if scan is None or not data.endswith(b"\xff\xd9") or STRAY.search(data, scan, len(data) - 2) is not None:
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), PLAIN)
    return None if pixels is None else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels))


def _find_scan(data: bytes) -> int | None:
    """Where the pixels begin: after the first scan's header; None where a segment before it is missing or odd."""
    place, seen = 2, set[int]()
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == START_OF_SCAN:
            return place if TABLES in seen and seen.intersection(BASELINE) else None
        seen.add(marker)
    return None
