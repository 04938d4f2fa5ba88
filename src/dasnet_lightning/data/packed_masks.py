"""Masks of one image packed as bits, eight to a plane, so that warping one plane warps eight masks.

Bit 0 of the first plane is the void map and bit 1 the area that an augmentation filled; the objects start at bit 2.
Overlapping objects keep one bit each, so nothing is lost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Integer, UInt8

VOID_BIT, FILLED_BIT = 1, 2  # values in the first plane
FIRST_SLOT = 2  # slot of the first object
BITS_PER_PLANE = 8


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks of one image as bits of a few planes.

    Attributes:
        planes: the bits.
        slots: mask j is bit `slots[j]`, counted over all planes.
        has_void: False if the data set has no void map; its bit is then 0 everywhere.
    """

    planes: UInt8[np.ndarray, "p H W"]
    slots: tuple[int, ...]
    has_void: bool = False

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.planes.shape[1], self.planes.shape[2]

    def select(self, indices: Iterable[int]) -> "PackedMasks":
        """Return some of the masks; the planes are shared, not copied."""
        return replace(self, slots=tuple(self.slots[index] for index in indices))

    def plane_and_bit(self, index: int) -> tuple[UInt8[np.ndarray, "H W"], int]:
        """Return the plane of a mask and the value of its bit there."""
        plane, bit = divmod(self.slots[index], BITS_PER_PLANE)
        return self.planes[plane], 1 << bit


def empty_masks(size: tuple[int, int], count: int, has_void: bool = False) -> PackedMasks:
    """Allocate `count` masks with no pixel set; the first plane exists even if `count` is 0."""
    planes = np.zeros((-(-(FIRST_SLOT + count) // BITS_PER_PLANE), *size), np.uint8)
    return PackedMasks(planes, tuple(range(FIRST_SLOT, FIRST_SLOT + count)), has_void)


def pack_masks(masks: Bool[np.ndarray, "m H W"], void: Bool[np.ndarray, "H W"] | None = None) -> PackedMasks:
    """Pack boolean masks and an optional void map."""
    packed = empty_masks((masks.shape[1], masks.shape[2]), len(masks), void is not None)
    for index, mask in enumerate(masks):
        plane, bit = packed.plane_and_bit(index)
        plane |= mask.astype(np.uint8) * np.uint8(bit)
    if void is not None:
        packed.planes[0] |= void.astype(np.uint8) * np.uint8(VOID_BIT)
    return packed


def pack_index_map(
    index_map: Integer[np.ndarray, "H W"], numbers: Sequence[int], void: int | None = None
) -> PackedMasks:
    """Pack the objects with these numbers out of an index map; the pixels equal to `void` form the void map."""
    packed = empty_masks((index_map.shape[0], index_map.shape[1]), len(numbers), void is not None)
    table = np.zeros((len(packed.planes), 1 + max([255, *numbers, int(index_map.max(initial=0))])), np.uint8)
    for number, slot in zip(numbers, packed.slots, strict=True):
        table[slot // BITS_PER_PLANE, number] |= 1 << slot % BITS_PER_PLANE
    if void is not None:
        table[0, void] = VOID_BIT
    for row, plane in zip(table, packed.planes, strict=True):
        if index_map.dtype == np.uint8:
            cv2.LUT(index_map, row[:256], plane)
        else:
            np.take(row, index_map.astype(np.intp), out=plane)
    return packed


def unpack_masks(packed: PackedMasks) -> Bool[np.ndarray, "m H W"]:
    """Return the masks as boolean arrays."""
    masks = np.empty((len(packed), *packed.size), bool)
    for index, mask in enumerate(masks):
        plane, bit = packed.plane_and_bit(index)
        np.not_equal(plane & np.uint8(bit), 0, out=mask)
    return masks


def unpack_void(packed: PackedMasks) -> Bool[np.ndarray, "H W"] | None:
    """Return the void map as a boolean array, or None if the data set has none."""
    return (packed.planes[0] & VOID_BIT) != 0 if packed.has_void else None


def find_empty(packed: PackedMasks) -> Bool[np.ndarray, " m"]:
    """Return which masks have no pixel."""
    used_bits = np.bitwise_or.reduce(packed.planes.reshape(len(packed.planes), -1), axis=1)
    return np.array([not used_bits[slot // BITS_PER_PLANE] >> slot % BITS_PER_PLANE & 1 for slot in packed.slots], bool)


def join_masks(packed: PackedMasks) -> Bool[np.ndarray, "H W"]:
    """Return the union of all masks."""
    joined = np.zeros(packed.size, bool)
    for number, plane in enumerate(packed.planes):
        bits = sum(1 << slot % BITS_PER_PLANE for slot in set(packed.slots) if slot // BITS_PER_PLANE == number)
        joined |= (plane & np.uint8(bits)) != 0
    return joined
