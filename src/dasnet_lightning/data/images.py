"""Read an image file of any kind as uint8 RGB, and describe a file that cannot be read.

The header is checked before anything is decoded, so a decompression bomb costs nothing. Pillow raises on a truncated
file, where other decoders return gray pixels.

Sound baseline JPEGs are decoded by OpenCV, straight into the array; Pillow copies twice. OpenCV returns an image even if
the file is truncated, has a stray marker, or lacks its tables. It therefore only gets files whose markers are all where a
sound baseline JPEG has them. The pixels are the same, because both use libjpeg-turbo with its defaults.
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
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

ORIENTATION_TAG = 0x0112  # EXIF
TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

BASELINE, HUFFMAN_TABLES, START_OF_SCAN = (0xC0, 0xC1), 0xC4, 0xDA  # JPEG markers
END_OF_IMAGE = b"\xff\xd9"
STRAY_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # in a scan only stuffed bytes and restarts follow 0xFF
DECODE_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def read_image(
    path: Path,
    expected_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    image_range: ImageRange | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file to RGB.

    Args:
        path: the image file.
        expected_size: annotated (height, width). The EXIF orientation is applied, unless only the stored image without
            rotation has the annotated size, because the boxes then refer to that one.
        max_pixels: largest accepted width x height.
        image_range: range of the data set's images of more than 8 bits. Default: the range of their type (see `pixels`).

    Raises:
        DataError: the file is missing, truncated, not an image, too large, or has another size than annotated.
    """
    try:
        with Image.open(path) as image:
            _check_pixels(path, image.size, max_pixels)
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
            as_stored = _matches_as_stored(path, image.size, orientation, expected_size)
            if orientation != 1 and not as_stored:
                return convert_pil(ImageOps.exif_transpose(image), image_range, str(path))
            pixels = _decode_fast(path, image)
            return convert_pil(image, image_range, str(path)) if pixels is None else pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {error}; the limit is max_pixels={max_pixels}, scale the image down") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise DataError(f"{path}: cannot be read as an image, {describe_file(path)} ({error})") from error


def image_size(path: Path) -> tuple[int, int]:
    """Return the stored (height, width) from the header of an image. Raises DataError if the file is not an image."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image, {describe_file(path)} ({error})") from error


def upright_size(path: Path) -> tuple[int, int]:
    """Return the (height, width) from the header of an image, turned as its EXIF orientation says.

    Raises:
        DataError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION_TAG, 1) in TRANSPOSING_ORIENTATIONS
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image, {describe_file(path)} ({error})") from error


def describe_file(path: Path, expected: str = "image") -> str:
    """Describe a file that is not a readable image, or not what else was expected, in half a sentence."""
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
        return f"it is an HTML page, probably an error page that was saved instead of the {expected}"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, run 'git lfs pull'"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")):
        return "it begins as an image but is truncated or damaged"
    if b"\0" not in head:
        return f"it looks like text that begins with {head[:20].decode('utf-8', 'replace')!r}"
    return f"it does not have a known {expected} format"


def decode_sound_jpeg(data: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """Decode a baseline JPEG with one scan to RGB; return None for any other or damaged file."""
    scan = _find_scan(data)
    if scan is None or not data.endswith(END_OF_IMAGE) or STRAY_MARKER.search(data, scan, len(data) - 2) is not None:
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), DECODE_FLAGS)
    return None if pixels is None else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels))


def _check_pixels(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise DataError(f"{path}: {width}x{height} pixels are more than max_pixels={max_pixels}, scale the image down")


def _matches_as_stored(path: Path, stored: tuple[int, int], orientation: int, expected: tuple[int, int] | None) -> bool:
    """Return whether only the stored, unrotated image has the annotated size. Raises DataError if neither has it."""
    raw = (stored[1], stored[0])
    upright = raw[::-1] if orientation in TRANSPOSING_ORIENTATIONS else raw
    if expected is None or upright == expected:
        return False
    if raw == expected:
        return True
    raise DataError(
        f"{path}: the image has {upright[1]}x{upright[0]} pixels but its annotation says {expected[1]}x{expected[0]}, "
        "so the boxes would be misaligned; correct the annotation or restore the original image"
    )


def _decode_fast(path: Path, image: Image.Image) -> UInt8[np.ndarray, "H W 3"] | None:
    """Return the stored pixels of a sound color JPEG; None if Pillow has to decode the file."""
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    pixels = decode_sound_jpeg(path.read_bytes())
    return None if pixels is None or pixels.shape[:2] != (image.height, image.width) else pixels


def _find_scan(data: bytes) -> int | None:
    """Return the offset of the pixels behind the first scan header; None if a segment before it is missing or odd."""
    offset, markers = 2, set[int]()
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker == START_OF_SCAN:
            return offset if HUFFMAN_TABLES in markers and markers.intersection(BASELINE) else None
        markers.add(marker)
    return None
