"""Decoder of the run lengths in which Label Studio stores brush masks.

The bytes are a bit stream, highest bit first. Its head holds the number of values (32 bits), the bits of a value minus one
(5 bits) and four bit widths of lengths minus one (4 bits each). Blocks follow. The first bit of a block tells a run (1) from
single values (0). Two bits choose the width of the length, which is stored minus one. A run has one value, the other kind
has as many as its length. The values are the RGBA bytes of all pixels row by row.
"""

import numpy as np
from jaxtyping import Bool

CHANNELS = 4
ALPHA = 3
HEAD_BITS = 32 + 5 + 4 * 4


def decode_brush(rle: object, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Return the mask of an image of `size` (height, width); pixels with alpha above zero are foreground.

    Raises:
        ValueError: the run lengths are damaged, cut short, or belong to an image of another size.
    """
    values = decode_values(rle, size[0] * size[1] * CHANNELS)
    return values.reshape(*size, CHANNELS)[:, :, ALPHA] > 0


def decode_values(rle: object, expected: int) -> np.ndarray:
    """Return the `expected` values of a bit stream. Raises ValueError as `decode_brush` does."""
    if not isinstance(rle, list) or not all(type(byte) is int and 0 <= byte <= 255 for byte in rle):
        raise ValueError("the run lengths are not a list of bytes")
    bits = np.unpackbits(np.array(rle, np.uint8))
    if len(bits) < HEAD_BITS:
        raise ValueError("the run lengths are cut short")
    count, value_bits = _read(bits, 0, 32), _read(bits, 32, 5) + 1
    widths = [_read(bits, 37 + 4 * place, 4) + 1 for place in range(4)]
    if count != expected:
        raise ValueError(f"the run lengths hold {count} values, expected {expected}, four for each pixel of the image")
    values = np.zeros(count, np.uint8 if value_bits <= 8 else np.uint32)
    position, filled = HEAD_BITS, 0
    while filled < count:
        width = widths[_read(bits, position + 1, 2)]
        length = _read(bits, position + 3, width) + 1
        start = position + 3 + width
        number = 1 if bits[position] else length
        position = start + number * value_bits
        if position > len(bits) or filled + length > count:
            raise ValueError("the run lengths are damaged or cut short")
        words = bits[start:position].reshape(number, value_bits) @ (1 << np.arange(value_bits - 1, -1, -1))
        values[filled : filled + length] = words
        filled += length
    return values


def _read(bits: np.ndarray, start: int, width: int) -> int:
    """Return an unsigned number. Raises ValueError if the stream ends before."""
    if start + width > len(bits):
        raise ValueError("the run lengths are cut short")
    number = 0
    for bit in bits[start : start + width].tolist():
        number = number << 1 | bit
    return number
