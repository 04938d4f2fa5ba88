"""The class map that semantic evaluation compares with, painted from the masks of one image."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dasnet_lightning.data.crops import pixel_window
from dasnet_lightning.types import IGNORE_INDEX

BoolMap = Bool[np.ndarray, "H W"]


def paint_semantic(
    size: tuple[int, int],
    boxes: Float[np.ndarray, "n 4"],
    labels: Sequence[int],
    ignore: Sequence[bool],
    masks: Sequence[BoolMap | None],
    void: BoolMap | None = None,
) -> UInt8[np.ndarray, "H W"]:
    """Paint the masks of one image into a class map: 0 background, 255 where the truth is not known.

    masks[i] is None where object i has no usable mask: its box is then 255, except where a known mask covers it.
    Where masks overlap, the smaller object lies on top. The masks of ignored objects are painted as 255; void pixels are
    255 whatever lies there.
    """
    semantic = np.zeros(size, dtype=np.uint8)
    for box, mask in zip(boxes, masks, strict=True):
        if mask is None:
            semantic[pixel_window(box, size)] = IGNORE_INDEX
    known = [(mask, label, skip) for mask, label, skip in zip(masks, labels, ignore, strict=True) if mask is not None]
    for mask, label, skip in sorted(known, key=lambda item: -int(np.count_nonzero(item[0]))):
        semantic[mask] = IGNORE_INDEX if skip else label
    if void is not None:
        semantic[void] = IGNORE_INDEX
    return semantic
