"""Selection of the objects that survive an augmentation, with their boxes and masks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from dasnet_lightning.data.augmentation.ssd_crop import pixel_window
from dasnet_lightning.data.packed_masks import FILLED_BIT, VOID_BIT, PackedMasks, find_empty, join_masks, unpack_masks


@dataclass(frozen=True, eq=False)
class Augmented:
    """One augmented image.

    An object that had a mask before the augmentation either has a non-empty mask or did not survive.

    Attributes:
        image: the pixels.
        boxes: xyxy in output pixels.
        kept: original index of each surviving object.
        masks: masks of surviving objects.
        mask_index: mask j belongs to surviving object `mask_index[j]`.
        void: pixels that no loss may read.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "k 4"]
    kept: Int64[np.ndarray, " k"]
    masks: Bool[np.ndarray, "m H W"]
    mask_index: Int64[np.ndarray, " m"]
    void: Bool[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class Warped:
    """Result of the augmentation steps before objects are selected.

    Attributes:
        image: the pixels.
        boxes: visible boxes, xyxy in output pixels.
        index: original index i of each box, or -1 - i if the object was cut away.
        packed: all input masks, warped.
        mask_index: original index of the object of each mask.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "v 4"]
    index: Int64[np.ndarray, " v"]
    packed: PackedMasks
    mask_index: Int64[np.ndarray, " m"]


def select_survivors(warped: Warped, labels: Int64[np.ndarray, " n"], keep_all: bool) -> Augmented:
    """Select the surviving objects with their boxes and masks.

    Args:
        warped: result of the augmentation steps.
        labels: labels of all input objects.
        keep_all: keep every object. Otherwise an object is removed if it was cut away, is less than one pixel wide or
            high, or lost its whole mask.
    """
    alive = np.ones(len(warped.index), dtype=bool) if keep_all else _find_alive(warped)
    kept = warped.index[alive]
    new_index = {original: new for new, original in enumerate(kept.tolist())}
    owners = warped.mask_index.tolist()
    kept_masks = [j for j, owner in enumerate(owners) if owner in new_index]
    packed = warped.packed.select(kept_masks)
    void = (warped.packed.planes[0] & (VOID_BIT | FILLED_BIT)) != 0
    if owners and not alive.all():
        void |= _leftovers(warped, alive, labels, packed)
    mask_index = np.array([new_index[owners[j]] for j in kept_masks], dtype=np.int64)
    boxes = warped.boxes[alive].astype(np.float32)
    return Augmented(warped.image, boxes, kept, unpack_masks(packed), mask_index, void)


def restore_vanished_masks(warped: PackedMasks, originals: PackedMasks) -> None:
    """Give every mask that vanished in a plain resize the one pixel that is nearest to its center, in place."""
    height, width = warped.size
    for index in np.flatnonzero(find_empty(warped) & ~find_empty(originals)).tolist():
        (plane, bit), (original, original_bit) = warped.plane_and_bit(index), originals.plane_and_bit(index)
        center = np.argwhere(original & original_bit).mean(axis=0) + 0.5
        y, x = (center / original.shape * (height, width)).astype(int)
        plane[min(y, height - 1), min(x, width - 1)] |= bit


def _find_alive(warped: Warped) -> Bool[np.ndarray, " v"]:
    large = ((warped.boxes[:, 2:] - warped.boxes[:, :2]) >= 1).all(axis=1)
    vanished = warped.mask_index[find_empty(warped.packed)]
    return np.asarray((warped.index >= 0) & large & ~np.isin(warped.index, vanished))


def _leftovers(
    warped: Warped, alive: Bool[np.ndarray, " v"], labels: np.ndarray, kept_masks: PackedMasks
) -> Bool[np.ndarray, "H W"]:
    """Return visible pixels of removed objects inside kept boxes of the same class and outside kept masks.

    Such pixels show the class but belong to no object any more. Training them as background would teach the opposite.
    """
    leftovers = np.zeros(warped.packed.size, dtype=bool)
    kept_labels = labels[warped.index[alive]]
    for label, area in _removed_areas(warped, alive, labels):
        for box in warped.boxes[alive][kept_labels == label]:
            window = pixel_window(box, area.shape)
            leftovers[window] |= area[window]
    return np.asarray(leftovers & ~join_masks(kept_masks))


def _removed_areas(
    warped: Warped, alive: Bool[np.ndarray, " v"], labels: np.ndarray
) -> Iterator[tuple[int, Bool[np.ndarray, "H W"]]]:
    """Yield the label and the visible area of each removed object: its mask, or its whole box if it has none."""
    owners = warped.mask_index.tolist()
    for index, box in zip(warped.index[~alive].tolist(), warped.boxes[~alive], strict=True):
        original = -1 - index if index < 0 else index
        if original in owners:
            yield int(labels[original]), unpack_masks(warped.packed.select([owners.index(original)]))[0]
        else:
            area = np.zeros(warped.packed.size, dtype=bool)
            area[pixel_window(box, area.shape)] = True
            yield int(labels[original]), area
