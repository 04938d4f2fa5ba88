"""What comes out of an augmentation, and how objects, boxes and masks are brought back together after it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from dasnet_lightning.data.augmentation.ssd_crop import pixel_window
from dasnet_lightning.data.packed_masks import FILLED, VOID, PackedMasks, find_empty, join_masks, unpack_masks


@dataclass(frozen=True, eq=False)
class Augmented:
    """One augmented image. `kept[i]` is the former position of object i; mask j belongs to object `mask_index[j]`.

    Boxes are xyxy in output pixels. An object that went in with a mask comes out with a non-empty one, or not at all.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "k 4"]
    kept: Int64[np.ndarray, " k"]
    masks: Bool[np.ndarray, "m H W"]
    mask_index: Int64[np.ndarray, " m"]
    void: Bool[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class Moved:
    """The raw result of the steps: `index` is the former position of a box, or -1 - position of an object cut away.

    `planes` hold all masks that went in, `mask_index` their objects' former positions.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "v 4"]
    index: Int64[np.ndarray, " v"]
    planes: PackedMasks
    mask_index: Int64[np.ndarray, " m"]


def collect(moved: Moved, labels: Int64[np.ndarray, " n"], keep_all: bool) -> Augmented:
    """Decide which objects survive and select their boxes and masks together.

    labels: of all objects that went in. keep_all: every object survives; else those that were cut away, that are less
    than one pixel wide or high, or whose mask vanished do not.
    """
    alive = np.ones(len(moved.index), dtype=bool) if keep_all else _alive(moved)
    kept = moved.index[alive]
    position = {former: new for new, former in enumerate(kept.tolist())}
    owners = moved.mask_index.tolist()
    survivors = [j for j, former in enumerate(owners) if former in position]
    planes = moved.planes.select(survivors)
    void = (moved.planes.planes[0] & (VOID | FILLED)) != 0
    if owners and not alive.all():
        void |= _leftovers(moved, alive, labels, planes)
    mask_index = np.array([position[owners[j]] for j in survivors], dtype=np.int64)
    boxes = moved.boxes[alive].astype(np.float32)
    return Augmented(moved.image, boxes, kept, unpack_masks(planes), mask_index, void)


def keep_a_pixel(moved: PackedMasks, originals: PackedMasks) -> None:
    """Give every mask that vanished in an uncropped, unflipped resize the one pixel that is nearest to its centre."""
    height, width = moved.size
    for index in np.flatnonzero(find_empty(moved) & ~find_empty(originals)).tolist():
        (plane, value), (original, bit) = moved.bit(index), originals.bit(index)
        y, x = ((np.argwhere(original & bit).mean(axis=0) + 0.5) / original.shape * (height, width)).astype(int)
        plane[min(y, height - 1), min(x, width - 1)] |= value


def _alive(moved: Moved) -> Bool[np.ndarray, " v"]:
    large = ((moved.boxes[:, 2:] - moved.boxes[:, :2]) >= 1).all(axis=1)
    vanished = moved.mask_index[find_empty(moved.planes)]
    return np.asarray((moved.index >= 0) & large & ~np.isin(moved.index, vanished))


def _leftovers(
    moved: Moved, alive: Bool[np.ndarray, " v"], labels: np.ndarray, known: PackedMasks
) -> Bool[np.ndarray, "H W"]:
    """What is still visible of removed objects inside the kept boxes of the same class, and under no kept mask.

    Such pixels show the class but have no object left: read as background they would teach the opposite.
    """
    leftovers = np.zeros(moved.planes.size, dtype=bool)
    kept_labels = labels[moved.index[alive]]
    for label, area in _removed(moved, alive, labels):
        for box in moved.boxes[alive][kept_labels == label]:
            window = pixel_window(box, area.shape)
            leftovers[window] |= area[window]
    return np.asarray(leftovers & ~join_masks(known))


def _removed(
    moved: Moved, alive: Bool[np.ndarray, " v"], labels: np.ndarray
) -> Iterator[tuple[int, Bool[np.ndarray, "H W"]]]:
    """The label and the visible area of every removed object: its mask, or its whole box where it has none."""
    owner = moved.mask_index.tolist()
    for index, box in zip(moved.index[~alive].tolist(), moved.boxes[~alive], strict=True):
        former = -1 - index if index < 0 else index
        if former in owner:
            yield int(labels[former]), unpack_masks(moved.planes.select([owner.index(former)]))[0]
        else:
            area = np.zeros(moved.planes.size, dtype=bool)
            area[pixel_window(box, area.shape)] = True
            yield int(labels[former]), area
