"""Polygons along the edges of a mask's pixels; rasterized, they give the same mask.

Coordinates are pixel edges, as in COCO: the pixel in column 3 reaches from x = 3 to x = 4.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

Ring = Float[np.ndarray, "v 2"]  # the corners (x, y) of a closed polygon; the first is not repeated


def trace_mask(mask: Bool[np.ndarray, "H W"], tolerance: float = 0.0) -> list[Ring]:
    """Return a polygon for each connected part of a mask; a bridge of zero width joins it to its holes.

    Args:
        mask: the mask.
        tolerance: largest distance in pixels of the polygon from the outline of the mask (Douglas and Peucker); 0 keeps
            every corner. A part that would have less than three corners keeps all.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    crop = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # at twice the size, even coordinates are the first pixel of a cell and odd ones its last
    doubled = crop.repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [
        _simplify(_to_corners((contour[:, 0] + 1) // 2), tolerance) + np.array([left, top]) for contour in contours
    ]
    parents = hierarchy[0, :, 3]
    outer = [index for index, parent in enumerate(parents) if parent < 0]
    return [
        join_rings([rings[index], *(rings[hole] for hole, parent in enumerate(parents) if parent == index)])
        for index in outer
    ]


def join_rings(rings: Sequence[Ring]) -> Ring:
    """Join polygons into one by bridges of zero width. By the even-odd rule, it covers the same pixels.

    Each polygon is joined at the corner that is nearest to a corner of those before it.
    """
    joined = rings[0]
    for ring in rings[1:]:
        distances, nearest = cKDTree(joined).query(ring)
        start = int(np.argmin(distances))
        at = int(nearest[start])
        turned = np.roll(ring, -start, axis=0)
        joined = np.concatenate([joined[: at + 1], turned, turned[:1], joined[at:]])
    return joined


def _to_corners(path: np.ndarray) -> Ring:
    """Reduce a path of unit steps along pixel edges to its corners."""
    steps = np.roll(path, -1, axis=0) - path
    path = path[steps.any(axis=1)]
    ahead = np.roll(path, -1, axis=0) - path
    behind = path - np.roll(path, 1, axis=0)
    turns = ahead[:, 0] * behind[:, 1] != ahead[:, 1] * behind[:, 0]
    reverses = (ahead * behind).sum(axis=1) < 0
    return path[turns | reverses].astype(np.float64)


def _simplify(ring: Ring, tolerance: float) -> Ring:
    """Leave out corners that are closer than the tolerance to the simplified outline."""
    if tolerance <= 0:
        return ring
    fewer = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, closed=True)[:, 0].astype(np.float64)
    return fewer if len(fewer) >= 3 and cv2.contourArea(fewer.astype(np.float32)) > 0 else ring
