"""Masks on disk to arrays: polygons and run lengths are checked before any decoder sees them.

pycocotools crashes on infinite polygons, and answers uninitialised memory where run lengths are too short; so polygons are
validated first, and run lengths are decoded here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_mask

from dasnet_lightning.data.packed_masks import PackedMasks, empty_planes
from dasnet_lightning.data.records import Masks, MaskState

REACH = 4  # polygons may reach this many image sizes beyond the origin, on either side
MAX_CHUNKS = 7  # of five bits each: more than any count of an image needs
MARGIN = 3.0  # pixels: outlines and boxes are drawn by different hands
MIN_INSIDE = 0.5
VOID = 255


@dataclass(frozen=True, eq=False)
class MaskShape:
    """A validated segmentation in compact form: polygons (x, y, x, y, ...), or the run lengths of a column-wise mask."""

    polygons: tuple[np.ndarray, ...] = ()
    counts: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class CheckedShape:
    """What a segmentation field holds: a shape where the state is PRESENT, a reason where it is INVALID."""

    state: MaskState
    shape: MaskShape | None = None
    reason: str = ""


def check_segmentation(value: Any, size: tuple[int, int]) -> CheckedShape:
    """Validate the `segmentation` field of a COCO annotation for an image of `size` (height, width).

    Missing, null, [] and [[]] are ABSENT; everything else that cannot be used is INVALID with a reason.
    """
    if value is None or value in ([], [[]]):
        return CheckedShape(MaskState.ABSENT)
    try:
        shape = _check_polygons(value, size) if isinstance(value, list) else _check_runs(value, size)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        return CheckedShape(MaskState.INVALID, reason=str(error))
    return CheckedShape(MaskState.PRESENT, shape)


def pack_shapes(shapes: Sequence[MaskShape], size: tuple[int, int]) -> PackedMasks:
    """Rasterise validated shapes into planes, each only from its first pixel to its last, column by column."""
    turned = empty_planes((size[1], size[0]), len(shapes))
    for index, shape in enumerate(shapes):
        counts = _runs(shape, size)
        plane, value = turned.bit(index)
        bits = np.zeros(len(counts), np.uint8)
        bits[1::2] = value
        start, stop = int(counts[0]), int(counts[: len(counts) // 2 * 2].sum())
        plane.reshape(-1)[start:stop] |= np.repeat(bits[1:], counts[1:])[: stop - start]
    return replace(turned, planes=np.stack([cv2.transpose(plane) for plane in turned.planes]))


def is_rectangle(shape: MaskShape | None, box: tuple[float, float, float, float] | None) -> bool:
    """Whether a shape is one polygon of four corners that are those of its box (xyxy)."""
    if shape is None or box is None or len(shape.polygons) != 1 or len(shape.polygons[0]) not in (8, 10):
        return False
    points = shape.polygons[0].reshape(-1, 2)
    near_x = np.abs(points[:, :1] - np.array(box[::2])).min(axis=1) <= 1
    near_y = np.abs(points[:, 1:] - np.array(box[1::2])).min(axis=1) <= 1
    extent = points.max(axis=0) - points.min(axis=0)
    return bool((near_x & near_y).all() and (np.abs(extent - (box[2] - box[0], box[3] - box[1])) <= 2).all())


def check_mask(plane: UInt8[np.ndarray, "H W"], value: int, box: tuple[float, float, float, float]) -> str:
    """Say why a mask cannot belong to its box (xyxy): it is empty, or mostly outside; "" where it can.

    The mask is the bit `value` of a plane.
    """
    mask = plane & np.uint8(value)
    total = cv2.countNonZero(mask)
    if total == 0:
        return "the mask is empty"
    x0, y0 = (max(0, math.floor(edge - MARGIN)) for edge in box[:2])
    x1, y1 = (math.ceil(edge + MARGIN) for edge in box[2:])
    inside = cv2.countNonZero(mask[y0:y1, x0:x1])
    if inside < MIN_INSIDE * total:
        return f"only {100 * inside // total} % of the mask lie inside its box"
    return ""


def collect_masks(
    packed: PackedMasks, boxes: Sequence[tuple[float, float, float, float]], reasons: Sequence[str]
) -> Masks:
    """Check opened masks against their boxes; `reasons[i]` not empty marks one that failed before."""
    checked = tuple(
        reason or check_mask(*packed.bit(index), box)
        for index, (box, reason) in enumerate(zip(boxes, reasons, strict=True))
    )
    return Masks(planes=packed, valid=tuple(not reason for reason in checked), reasons=checked)


def check_indices(picture: UInt8[np.ndarray, "H W"], count: int) -> str:
    """Say why VOC's index picture cannot be that of `count` objects in the XML; "" where it can.

    The object at place k of the XML (from 1) has the index k. More indices than objects means that the two do not speak of
    the same objects, and none of them is trusted.
    """
    top = int((picture + np.uint8(1)).max(initial=0)) - 1  # VOID becomes 0
    return f"SegmentationObject has indices up to {top} but the XML has {count} objects" if top > count else ""


def parse_counts(text: str | bytes) -> np.ndarray:
    """Decode COCO's compressed run lengths: five bits a character, low first, each count relative to the one before last.

    Raises ValueError for characters or lengths that cannot occur.
    """
    codes = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the compressed run lengths are damaged or cut short")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > MAX_CHUNKS:
        raise ValueError("the compressed run lengths hold a number that no image needs")
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values = np.where(codes[ends] & 16, values - (1 << (5 * lengths)), values)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _runs(shape: MaskShape, size: tuple[int, int]) -> np.ndarray:
    """The run lengths of a shape, column by column, the first outside."""
    if shape.counts is not None:
        return shape.counts
    # decoded here as well: pycocotools' own decoder warns under numpy 2
    runs = coco_mask.merge(coco_mask.frPyObjects(list(shape.polygons), *size))
    return parse_counts(runs["counts"])


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> MaskShape:
    limits = (REACH * size[1], REACH * size[0])
    for number, polygon in enumerate(polygons, start=1):
        if not isinstance(polygon, list):
            raise ValueError(f"polygon {number} is no list of numbers")
        _check_polygon(polygon, f"polygon {number} of {len(polygons)}", limits)
    return MaskShape(polygons=tuple(np.array(polygon, dtype=np.float64) for polygon in polygons))


def _check_polygon(polygon: list[Any], name: str, limits: tuple[int, int]) -> None:
    try:
        finite = math.isfinite(sum(polygon))
    except TypeError:
        raise ValueError(f"{name} holds something that is no number") from None
    if len(polygon) % 2:
        raise ValueError(f"{name} has an odd count of numbers ({len(polygon)})")
    xs, ys = polygon[::2], polygon[1::2]
    if len(set(zip(xs, ys, strict=True))) < 3:
        raise ValueError(f"{name} has fewer than three distinct points")
    if not finite:
        raise ValueError(f"{name} is not finite")
    if max(max(xs), -min(xs)) > limits[0] or max(max(ys), -min(ys)) > limits[1]:
        raise ValueError(f"{name} reaches more than {REACH} image sizes away")


def _check_runs(value: Any, size: tuple[int, int]) -> MaskShape:
    if not isinstance(value, dict) or "counts" not in value or "size" not in value:
        raise ValueError("the segmentation is neither polygons nor run lengths with 'counts' and 'size'")
    if list(value["size"]) != list(size):
        raise ValueError(f"the run lengths are for size {value['size']}, the image has {list(size)}")
    counts = value["counts"]
    runs = parse_counts(counts) if isinstance(counts, str | bytes) else _whole_numbers(counts)
    if (runs < 0).any():
        raise ValueError("a run length is negative")
    if int(runs.sum()) != size[0] * size[1]:
        raise ValueError(f"the run lengths sum to {int(runs.sum())}, expected {size[0] * size[1]}")
    if not runs[1::2].any():
        raise ValueError("the mask is empty")
    return MaskShape(counts=runs)


def _whole_numbers(counts: Any) -> np.ndarray:
    if not isinstance(counts, list) or not all(type(count) is int and count < 2**40 for count in counts):
        raise ValueError("the run lengths are no list of whole numbers")
    return np.array(counts, dtype=np.int64)
