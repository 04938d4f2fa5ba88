"""Conversion of masks on disk into arrays, with all polygons and run lengths validated first.

pycocotools crashes on infinite polygons and returns uninitialized memory if run lengths are too short. Polygons are
therefore validated before they reach it, and run lengths are decoded here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_mask

from dasnet_lightning.data.packed_masks import PackedMasks, empty_masks, unpack_masks
from dasnet_lightning.data.records import Masks, MaskState

MAX_REACH = 4  # image sizes that polygons may extend beyond the origin, on either side
MAX_CHUNKS = 7  # chunks of five bits in a run length; no image needs more
BOX_MARGIN = 3.0  # pixels that a mask may extend beyond its box, because both are drawn separately
MIN_INSIDE = 0.5  # share of a mask that must lie inside its box
VOID_INDEX = 255  # in VOC's index maps


@dataclass(frozen=True, eq=False)
class MaskShape:
    """Validated segmentation: polygons (x, y, x, y, ...), or run lengths of a mask in column-major order."""

    polygons: tuple[np.ndarray, ...] = ()
    counts: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class CheckedShape:
    """Result of checking a segmentation: a shape if the state is PRESENT, a reason if it is INVALID."""

    state: MaskState
    shape: MaskShape | None = None
    reason: str = ""


def check_segmentation(value: Any, size: tuple[int, int]) -> CheckedShape:
    """Validate the `segmentation` field of a COCO annotation for an image of `size` (height, width).

    Missing, null, [] and [[]] are ABSENT. Everything else that cannot be used is INVALID with a reason.
    """
    if value is None or value in ([], [[]]):
        return CheckedShape(MaskState.ABSENT)
    try:
        shape = _check_polygons(value, size) if isinstance(value, list) else _check_run_lengths(value, size)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        return CheckedShape(MaskState.INVALID, reason=str(error))
    return CheckedShape(MaskState.PRESENT, shape)


def pack_shapes(shapes: Sequence[MaskShape], size: tuple[int, int]) -> PackedMasks:
    """Rasterize validated shapes into packed masks of `size` (height, width)."""
    transposed = empty_masks((size[1], size[0]), len(shapes))
    for index, shape in enumerate(shapes):
        counts = _run_lengths(shape, size)
        plane, bit = transposed.plane_and_bit(index)
        bits = np.zeros(len(counts), np.uint8)
        bits[1::2] = bit
        # only the span from the first pixel to the last is written
        start, stop = int(counts[0]), int(counts[: len(counts) // 2 * 2].sum())
        plane.reshape(-1)[start:stop] |= np.repeat(bits[1:], counts[1:])[: stop - start]
    return replace(transposed, planes=np.stack([cv2.transpose(plane) for plane in transposed.planes]))


def is_rectangle(shape: MaskShape | None, box: tuple[float, float, float, float] | None) -> bool:
    """Return whether a shape is one polygon whose four corners are those of its box (xyxy)."""
    if shape is None or box is None or len(shape.polygons) != 1 or len(shape.polygons[0]) not in (8, 10):
        return False
    points = shape.polygons[0].reshape(-1, 2)
    near_x = np.abs(points[:, :1] - np.array(box[::2])).min(axis=1) <= 1
    near_y = np.abs(points[:, 1:] - np.array(box[1::2])).min(axis=1) <= 1
    extent = points.max(axis=0) - points.min(axis=0)
    return bool((near_x & near_y).all() and (np.abs(extent - (box[2] - box[0], box[3] - box[1])) <= 2).all())


def find_extent(shape: MaskShape, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Return the xyxy extent of a shape; None if it is empty. Polygons are not rasterized.

    Args:
        shape: a validated shape.
        size: (height, width) of the image, only used for run lengths.
    """
    if shape.polygons:
        points = np.concatenate(shape.polygons).reshape(-1, 2)
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return x0, y0, x1, y1
    mask = unpack_masks(pack_shapes([shape], size))[0]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def collect_masks(
    packed: PackedMasks, boxes: Sequence[tuple[float, float, float, float]], reasons: Sequence[str]
) -> Masks:
    """Check opened masks against their boxes (xyxy); a non-empty `reasons[i]` marks a mask that failed before."""
    checked = tuple(
        reason or check_mask(*packed.plane_and_bit(index), box)
        for index, (box, reason) in enumerate(zip(boxes, reasons, strict=True))
    )
    return Masks(packed=packed, valid=tuple(not reason for reason in checked), reasons=checked)


def check_mask(plane: UInt8[np.ndarray, "H W"], bit: int, box: tuple[float, float, float, float]) -> str:
    """Return why a mask cannot belong to its box: it is empty or mostly outside; "" if it can.

    Args:
        plane: plane of packed masks.
        bit: value of the mask's bit in the plane.
        box: xyxy in pixels.
    """
    mask = plane & np.uint8(bit)
    total = cv2.countNonZero(mask)
    if total == 0:
        return "the mask is empty"
    x0, y0 = (max(0, math.floor(edge - BOX_MARGIN)) for edge in box[:2])
    x1, y1 = (math.ceil(edge + BOX_MARGIN) for edge in box[2:])
    inside = cv2.countNonZero(mask[y0:y1, x0:x1])
    if inside < MIN_INSIDE * total:
        return f"only {100 * inside // total} % of the mask lies inside its box, expected at least {MIN_INSIDE:.0%}"
    return ""


def check_indices(index_map: UInt8[np.ndarray, "H W"], count: int) -> str:
    """Return why VOC's index map cannot show the `count` objects of the XML; "" if it can.

    Object k of the XML (from 1) has index k. If there are more indices than objects, the two files describe different
    objects, and no mask of the image is used.
    """
    top = int((index_map + np.uint8(1)).max(initial=0)) - 1  # VOID_INDEX wraps to 0
    return f"SegmentationObject has indices up to {top} but the XML has {count} objects" if top > count else ""


def parse_counts(text: str | bytes) -> np.ndarray:
    """Decode COCO's compressed run lengths.

    A character holds five bits, low bits first, and each count is relative to the one before last. Raises ValueError for
    characters or lengths that cannot occur.
    """
    codes = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the compressed run lengths are damaged or truncated")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > MAX_CHUNKS:
        raise ValueError("the compressed run lengths contain a number larger than any image")
    chunk = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * chunk), starts)
    values = np.where(codes[ends] & 16, values - (1 << (5 * lengths)), values)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _run_lengths(shape: MaskShape, size: tuple[int, int]) -> np.ndarray:
    """Return the run lengths of a shape in column-major order, the first outside."""
    if shape.counts is not None:
        return shape.counts
    # pycocotools' own decoder warns under numpy 2
    runs = coco_mask.merge(coco_mask.frPyObjects(list(shape.polygons), *size))
    return parse_counts(runs["counts"])


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> MaskShape:
    limits = (MAX_REACH * size[1], MAX_REACH * size[0])
    for number, polygon in enumerate(polygons, start=1):
        if not isinstance(polygon, list):
            raise ValueError(f"polygon {number} is not a list of numbers")
        _check_polygon(polygon, f"polygon {number} of {len(polygons)}", limits)
    return MaskShape(polygons=tuple(np.array(polygon, dtype=np.float64) for polygon in polygons))


def _check_polygon(polygon: list[Any], name: str, limits: tuple[int, int]) -> None:
    try:
        finite = math.isfinite(sum(polygon))
    except TypeError:
        raise ValueError(f"{name} contains a value that is not a number") from None
    if len(polygon) % 2:
        raise ValueError(f"{name} has an odd count of numbers ({len(polygon)})")
    xs, ys = polygon[::2], polygon[1::2]
    if len(set(zip(xs, ys, strict=True))) < 3:
        raise ValueError(f"{name} has fewer than three distinct points")
    if not finite:
        raise ValueError(f"{name} is not finite")
    if max(max(xs), -min(xs)) > limits[0] or max(max(ys), -min(ys)) > limits[1]:
        raise ValueError(f"{name} extends more than {MAX_REACH} image sizes beyond the origin")


def _check_run_lengths(value: Any, size: tuple[int, int]) -> MaskShape:
    if not isinstance(value, dict) or "counts" not in value or "size" not in value:
        raise ValueError("the segmentation is neither polygons nor run lengths with 'counts' and 'size'")
    if list(value["size"]) != list(size):
        swapped = ", are height and width swapped?" if list(value["size"]) == list(size)[::-1] else ""
        raise ValueError(f"the run lengths are for size {value['size']}, the image has {list(size)}{swapped}")
    counts = value["counts"]
    runs = parse_counts(counts) if isinstance(counts, str | bytes) else _parse_plain_counts(counts)
    if (runs < 0).any():
        raise ValueError("a run length is negative")
    if int(runs.sum()) != size[0] * size[1]:
        raise ValueError(f"the run lengths sum to {int(runs.sum())}, expected {size[0] * size[1]}")
    if not runs[1::2].any():
        raise ValueError("the mask is empty")
    return MaskShape(counts=runs)


def _parse_plain_counts(counts: Any) -> np.ndarray:
    if not isinstance(counts, list) or not all(type(count) is int and count < 2**40 for count in counts):
        raise ValueError("the run lengths are not a list of integers")
    return np.array(counts, dtype=np.int64)
