"""Reading one image file as uint8 RGB, whatever it is; what cannot be read is named and described.

The header is looked at before anything is decoded, so a decompression bomb costs nothing. Pillow raises where a file is
cut short (other decoders answer grey pixels), so a truncated photograph never reaches the training; only a JPEG that is
sound is decoded by something faster (data.jpeg).

The fast way for ordinary photographs: OpenCV decodes a JPEG straight into the array, Pillow by way of two copies.

OpenCV answers a picture where Pillow raises: grey pixels for a file that is cut short (its older versions), whatever it
had read where the data are broken by a stray marker, pixels from tables that it invents where the file has none. So it
gets only files whose every marker is where a sound baseline JPEG has it; all others are Pillow's. The pixels are the
same: both use libjpeg-turbo with its defaults.
"""

import re
import struct
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dasnet_lightning.data.pixels import ImageRange, convert_pil
from dasnet_lightning.errors import DataError

MAX_PIXELS = 64_000_000
ORIENTATION = 0x0112  # the EXIF tag
TURNED = (5, 6, 7, 8)  # its values that swap width and height


def read_image(
    path: Path,
    expected_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    image_range: ImageRange | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image to RGB.

    expected_size: the annotated (height, width). The EXIF orientation is applied, unless only the un-rotated picture has
    the annotated size: then the boxes follow that one. image_range: the data set's, for images of more than 8 bits; None
    takes that of their type (see `pixels`). Raises DataError with the path where the file is missing,
    truncated, no image, larger than `max_pixels`, or of another size than annotated.
    """
    try:
        with Image.open(path) as image:
            _check_pixels(path, image.size, max_pixels)
            orientation = image.getexif().get(ORIENTATION, 1)
            keep = _keeps_orientation(path, image.size, orientation, expected_size)
            upright = image if keep or orientation == 1 else ImageOps.exif_transpose(image)
            fast = _decode_fast(path, image) if upright is image else None
            return convert_pil(upright, image_range, str(path)) if fast is None else fast
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {error}; the limit is max_pixels={max_pixels}") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise DataError(f"{path}: cannot be read as an image, {describe_file(path)} ({error})") from error


def image_size(path: Path) -> tuple[int, int]:
    """The (height, width) in the header of an image, as stored. Raises DataError where there is none."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image, {describe_file(path)} ({error})") from error


def describe_file(path: Path, kind: str = "image") -> str:
    """Say what a file that is no readable image, or whatever else was expected, looks like."""
    if not path.exists():
        return "it does not exist"
    if path.is_dir():
        return "it is a folder"
    with path.open("rb") as file:
        head = file.read(512)
    start = head.lstrip().lower()
    if not head:
        return "it is empty (zero bytes)"
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return f"it is an HTML page, probably an error page that was saved instead of the {kind}"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, run 'git lfs pull'"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")):
        return "it begins as an image but is truncated or damaged"
    if b"\0" not in head:
        return f"it looks like text that begins with {head[:20].decode('utf-8', 'replace')!r}"
    return f"it is of no known {kind} format"


def _check_pixels(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise DataError(
            f"{path}: {width}x{height} pixels are more than max_pixels={max_pixels}, is it meant to be so big?"
        )


def _keeps_orientation(path: Path, stored: tuple[int, int], orientation: int, expected: tuple[int, int] | None) -> bool:
    """Whether the stored picture is to be used as it is. Raises DataError where neither way has the annotated size."""
    raw = (stored[1], stored[0])
    turned = raw[::-1] if orientation in TURNED else raw
    if expected is None or turned == expected:
        return False
    if raw == expected:
        return True
    raise DataError(
        f"{path}: the image has {turned[1]}x{turned[0]} pixels but its annotation says {expected[1]}x{expected[0]}; "
        "the boxes would be misaligned, correct the annotation or put back the original image"
    )


def _decode_fast(path: Path, image: Image.Image) -> UInt8[np.ndarray, "H W 3"] | None:
    """The pixels of a sound JPEG in colours, as stored; None where they are Pillow's to decode."""
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    pixels = decode_sound_jpeg(path.read_bytes())
    return None if pixels is None or pixels.shape[:2] != (image.height, image.width) else pixels


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
