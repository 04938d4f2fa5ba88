"""Annotated objects as shapes in pixels: polygons, bitmaps, ellipses and boxes, as annotation tools draw them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from dasnet_lightning.data.sources.checks import Box

DECIMALS = 6  # of a pixel
ELLIPSE_POINTS = 96  # IoU with the exact ellipse above 0.999


@dataclass(frozen=True, eq=False)
class Bitmap:
    """Mask of a window of an image, as run lengths row by row that start with background.

    Attributes:
        runs: run lengths in pixels; their sum is width * height.
        left: first column of the window.
        top: first row of the window.
        width: columns of the window.
        height: rows of the window.
    """

    runs: np.ndarray
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class DrawnObject:
    """One annotated object as its file describes it.

    Attributes:
        object_id: unique in its source.
        class_name: name of its class; "" if the file names none.
        box: xyxy edges in pixels; None to take the extent of the polygons and bitmaps.
        shown: the object's geometry as written in the file, for messages.
        polygons: parts of the mask as [x, y, x, y, ...] in pixels.
        bitmaps: parts of the mask as pixels.
        ignore: True for crowd objects.
        fault: why the object cannot be used at all; "" if it can.
        mask_fault: why its mask cannot be used; "" if it can or if there is none.
        by_model: whether a model made the mask.
    """

    object_id: str
    class_name: str
    box: Box | None
    shown: str = ""
    polygons: tuple[list[float], ...] = ()
    bitmaps: tuple[Bitmap, ...] = ()
    ignore: bool = False
    fault: str = ""
    mask_fault: str = ""
    by_model: bool = False


@dataclass(frozen=True, eq=False)
class DrawnImage:
    """One image as its annotation file describes it; `path` is None if the image file is missing.

    `size` is (height, width), `name` the image's name in messages and `file` the annotation file.
    """

    image_id: str
    name: str
    path: Path | None
    size: tuple[int, int]
    file: Path
    objects: tuple[DrawnObject, ...]


def extent(polygons: Iterable[Sequence[float]], bitmaps: Iterable[Bitmap] = ()) -> Box | None:
    """Return the tight xyxy box of polygons and of the foreground of bitmaps; None if there is none."""
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        xs += polygon[::2]
        ys += polygon[1::2]
    for bitmap in bitmaps:
        mask = decode_bitmap(bitmap)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            xs += [float(bitmap.left + columns[0]), float(bitmap.left + columns[-1] + 1)]
            ys += [float(bitmap.top + rows[0]), float(bitmap.top + rows[-1] + 1)]
    return (min(xs), min(ys), max(xs), max(ys)) if xs and ys else None


def to_pixels(share: float, scale: float = 1) -> float:
    """Return a share of a side in pixels, without the rounding error that can move a mask's outline by a pixel."""
    return round(share * scale, DECIMALS)


def ellipse(center: tuple[float, float], radii: tuple[float, float], degrees: float = 0) -> list[float]:
    """Return an ellipse (x, y) as a polygon, turned clockwise in the image by `degrees`."""
    turn = math.radians(degrees)
    points: list[float] = []
    for number in range(ELLIPSE_POINTS):
        angle = 2 * math.pi * number / ELLIPSE_POINTS
        x, y = radii[0] * math.cos(angle), radii[1] * math.sin(angle)
        points.append(center[0] + x * math.cos(turn) - y * math.sin(turn))
        points.append(center[1] + x * math.sin(turn) + y * math.cos(turn))
    return points


def rotate_box(box: Box, pivot: tuple[float, float], degrees: float) -> Box:
    """Return the box around a rectangle (xyxy) that is turned clockwise around a pivot by `degrees`."""
    turn = math.radians(degrees)
    xs, ys = [], []
    for x in (box[0] - pivot[0], box[2] - pivot[0]):
        for y in (box[1] - pivot[1], box[3] - pivot[1]):
            xs.append(pivot[0] + x * math.cos(turn) - y * math.sin(turn))
            ys.append(pivot[1] + x * math.sin(turn) + y * math.cos(turn))
    return min(xs), min(ys), max(xs), max(ys)


def merge_group(parts: Sequence[DrawnObject]) -> DrawnObject:
    """Join the shapes of one object; its box surrounds all of them, boxes without a shape add nothing to the mask."""
    if len(parts) == 1:
        return parts[0]
    boxes = [part.box if part.box is not None else extent(part.polygons, part.bitmaps) for part in parts]
    drawn = [part for part in parts if part.polygons or part.bitmaps]
    known = np.array([box for box in boxes if box is not None])
    hull = None if not len(known) else (*known[:, :2].min(axis=0).tolist(), *known[:, 2:].max(axis=0).tolist())
    return replace(
        parts[0],
        box=hull,
        shown=" and ".join(part.shown for part in parts if part.shown),
        polygons=tuple(polygon for part in parts for polygon in part.polygons),
        bitmaps=tuple(bitmap for part in parts for bitmap in part.bitmaps),
        ignore=any(part.ignore for part in parts),
        fault=next((part.fault for part in parts if part.fault), ""),
        mask_fault=next((part.mask_fault for part in parts if part.mask_fault), ""),
        by_model=bool(drawn) and all(part.by_model for part in drawn),
    )


def encode_bitmap(mask: Bool[np.ndarray, "h w"], left: int = 0, top: int = 0) -> Bitmap:
    """Return the run lengths of a mask whose first pixel lies at (left, top) of its image."""
    return Bitmap(count_runs(mask.ravel()), left, top, mask.shape[1], mask.shape[0])


def decode_bitmap(bitmap: Bitmap) -> Bool[np.ndarray, "h w"]:
    """Return the mask of a bitmap's window."""
    values = np.arange(len(bitmap.runs)) % 2 == 1
    return np.repeat(values, bitmap.runs).reshape(bitmap.height, bitmap.width)


def count_runs(flat: Bool[np.ndarray, " n"]) -> np.ndarray:
    """Return the run lengths of a flat mask, the first of background."""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [len(flat)])))
    return np.concatenate(([0], runs)) if len(flat) and flat[0] else runs
