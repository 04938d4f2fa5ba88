"""The masks of one image as bits of a few pictures: whoever moves a picture moves eight masks, at the cost of one.

Bit 0 of the first plane is the void map and bit 1 the area that an augmentation filled; bit 2 is the first object's, and
so on, eight to a plane. Objects that overlap keep a bit each, so nothing is lost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Integer, UInt8

VOID, FILLED = 1, 2
FIRST = 2  # the place of the first object; a place counts bits over all planes
BITS = 8


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Mask j is bit `places[j]`. `has_void` is False where the data set has no void map; its bit is then 0 everywhere."""

    planes: UInt8[np.ndarray, "p H W"]
    places: tuple[int, ...]
    has_void: bool = False

    def __len__(self) -> int:
        return len(self.places)

    @property
    def size(self) -> tuple[int, int]:
        return self.planes.shape[1], self.planes.shape[2]

    def select(self, indices: Iterable[int]) -> "PackedMasks":
        """These masks alone; the pictures are shared."""
        return replace(self, places=tuple(self.places[index] for index in indices))

    def bit(self, index: int) -> tuple[UInt8[np.ndarray, "H W"], int]:
        """The plane of a mask, and the value that its bit has there."""
        plane, bit = divmod(self.places[index], BITS)
        return self.planes[plane], 1 << bit


def empty_planes(size: tuple[int, int], count: int, has_void: bool = False) -> PackedMasks:
    """Planes for so many masks, nothing set; the first is there without any."""
    planes = np.zeros((-(-(FIRST + count) // BITS), *size), np.uint8)
    return PackedMasks(planes, tuple(range(FIRST, FIRST + count)), has_void)


def pack_masks(masks: Bool[np.ndarray, "m H W"], void: Bool[np.ndarray, "H W"] | None = None) -> PackedMasks:
    """Planes of masks that are there as arrays."""
    packed = empty_planes((masks.shape[1], masks.shape[2]), len(masks), void is not None)
    for index, mask in enumerate(masks):
        plane, value = packed.bit(index)
        plane |= mask.astype(np.uint8) * np.uint8(value)
    if void is not None:
        packed.planes[0] |= void.astype(np.uint8) * np.uint8(VOID)
    return packed


def pack_picture(picture: Integer[np.ndarray, "H W"], numbers: Sequence[int], void: int | None = None) -> PackedMasks:
    """Planes of the objects with these numbers in an index picture; the number `void` marks the void map."""
    packed = empty_planes((picture.shape[0], picture.shape[1]), len(numbers), void is not None)
    table = np.zeros((len(packed.planes), 1 + max([255, *numbers, int(picture.max(initial=0))])), np.uint8)
    for number, place in zip(numbers, packed.places, strict=True):
        table[place // BITS, number] |= 1 << place % BITS
    if void is not None:
        table[0, void] = VOID
    for row, plane in zip(table, packed.planes, strict=True):
        if picture.dtype == np.uint8:
            cv2.LUT(picture, row[:256], plane)
        else:
            np.take(row, picture.astype(np.intp), out=plane)
    return packed


def unpack_masks(packed: PackedMasks) -> Bool[np.ndarray, "m H W"]:
    """The masks as arrays."""
    masks = np.empty((len(packed), *packed.size), bool)
    for index, mask in enumerate(masks):
        plane, value = packed.bit(index)
        np.not_equal(plane & np.uint8(value), 0, out=mask)
    return masks


def unpack_void(packed: PackedMasks) -> Bool[np.ndarray, "H W"] | None:
    """The void map as an array, None where there is none."""
    return (packed.planes[0] & VOID) != 0 if packed.has_void else None


def find_empty(packed: PackedMasks) -> Bool[np.ndarray, " m"]:
    """Which masks have no pixel at all."""
    seen = np.bitwise_or.reduce(packed.planes.reshape(len(packed.planes), -1), axis=1)
    return np.array([not seen[place // BITS] >> place % BITS & 1 for place in packed.places], bool)


def join_masks(packed: PackedMasks) -> Bool[np.ndarray, "H W"]:
    """What any of the masks covers."""
    joined = np.zeros(packed.size, bool)
    for number, plane in enumerate(packed.planes):
        bits = sum(1 << place % BITS for place in set(packed.places) if place // BITS == number)
        joined |= (plane & np.uint8(bits)) != 0
    return joined
