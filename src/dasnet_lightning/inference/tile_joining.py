"""Objects and class maps of overlapping tiles of an image, joined.

Two objects of one class from two tiles are one object if their masks agree where the tiles overlap. If one tile shows it
whole, its box and mask are taken from there. Otherwise it is cut by the border of each tile: the box is the union, and each
tile gives the pixels of the mask that lie nearest to its center. The class map is stitched along the same lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.mask_windows import MaskWindows, Window

Number = TypeVar("Number", int, float)

SAME_OBJECT = 0.5  # IoU of two masks where their tiles overlap
BORDER_SHARE = 0.02  # an object that comes nearer to a border than this share of the tile may be cut by it


@dataclass(frozen=True)
class Tile:
    """A part of an image, in its pixels.

    Attributes:
        window: x0, y0, x1, y1; it extends beyond an image that is smaller than a tile.
        owned: the part of the window that no other tile sees farther from its border.
    """

    window: Window
    owned: Window


def place_tiles(size: tuple[int, int], tile: int, overlap: float) -> list[Tile]:
    """Place square tiles evenly over an image of `size` (height, width).

    Args:
        size: (height, width) of the image.
        tile: side of a tile in pixels.
        overlap: lowest share of a tile that its neighbor also sees.

    Raises:
        ConfigError: the side is not positive, or the overlap is not in 0..0.9.
    """
    if tile < 1 or not 0 <= overlap <= 0.9:
        raise ConfigError(f"tile={tile} must be at least 1 pixel, overlap={overlap} must be from 0 to 0.9")
    rows, columns = (_place_axis(length, tile, overlap) for length in size)
    return [
        Tile((x, y, x + tile, y + tile), (left, top, right, bottom))
        for y, top, bottom in rows
        for x, left, right in columns
    ]


def _place_axis(length: int, tile: int, overlap: float) -> list[tuple[int, int, int]]:
    """Return the start of each tile along an axis, and the start and stop of what it owns."""
    if length <= tile:
        return [((length - tile) // 2, 0, length)]
    count = 1 + int(np.ceil((length - tile) / max(1, tile * (1 - overlap)) - 1e-9))
    starts = np.rint(np.linspace(0, length - tile, count)).astype(int).tolist()
    cuts = [0, *((low + tile + high) // 2 for low, high in pairwise(starts)), length]
    return list(zip(starts, cuts[:-1], cuts[1:], strict=True))


def join_tiles(
    pixels: UInt8[np.ndarray, "H W 3"], results: Sequence[Segmentation], tiles: Sequence[Tile]
) -> Segmentation:
    """Join the objects and class maps of the tiles of an image; the best-scored object comes first.

    Args:
        pixels: the image.
        results: the result of each tile, in pixels of the tile.
        tiles: the tiles.
    """
    size = (pixels.shape[0], pixels.shape[1])
    semantic = torch.zeros(size, dtype=torch.int64)
    for result, tile in zip(results, tiles, strict=True):
        (x0, y0, x1, y1), (x, y) = tile.owned, tile.window[:2]
        semantic[y0:y1, x0:x1] = result.semantic[y0 - y : y1 - y, x0 - x : x1 - x]
    parts = [part for result, tile in zip(results, tiles, strict=True) for part in _move_objects(result, tile, size)]
    joined = sorted((_join(group, size) for group in _group(parts)), key=lambda part: -part.score)
    masks = MaskWindows(size, len(joined))
    for number, part in enumerate(joined):
        masks.put(number, part.area, part.mask)
    return Segmentation(
        image=pixels,
        boxes=torch.tensor([part.box for part in joined], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([part.label for part in joined], dtype=torch.int64),
        scores=torch.tensor([part.score for part in joined], dtype=torch.float32),
        semantic=semantic,
        class_names=results[0].class_names,
        masks=masks,
        category_ids=results[0].category_ids,
        quality=torch.tensor([part.quality for part in joined], dtype=torch.float32),
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """An object as one tile shows it, in pixels of the image; its mask lies in the window `area`."""

    tile: Tile
    box: tuple[float, float, float, float]
    label: int
    score: float
    quality: float
    area: Window
    mask: Bool[np.ndarray, "_ _"]

    def pixels(self, window: Window) -> Bool[np.ndarray, "_ _"]:
        """Return the pixels of the mask in a window of the image."""
        x0, y0, x1, y1 = window
        found = np.zeros((max(0, y1 - y0), max(0, x1 - x0)), bool)
        left, top, right, bottom = intersect(window, self.area)
        if right > left and bottom > top:
            x, y = self.area[:2]
            found[top - y0 : bottom - y0, left - x0 : right - x0] = self.mask[
                top - y : bottom - y, left - x : right - x
            ]
        return found

    def is_whole(self, size: tuple[int, int]) -> bool:
        """Return whether no border of the tile inside the image of this size may cut the object."""
        x0, y0, x1, y1 = self.tile.window
        near = BORDER_SHARE * (x1 - x0)
        return (
            (x0 <= 0 or self.box[0] >= x0 + near)
            and (y0 <= 0 or self.box[1] >= y0 + near)
            and (x1 >= size[1] or self.box[2] <= x1 - near)
            and (y1 >= size[0] or self.box[3] <= y1 - near)
        )


def intersect(one: Window, other: Window) -> Window:
    """Return the common part of two windows; it may be empty, with x1 <= x0 or y1 <= y0."""
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def enclose(boxes: Sequence[tuple[Number, Number, Number, Number]]) -> tuple[Number, Number, Number, Number]:
    """Return the smallest box that contains all boxes."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def move_masks(masks: MaskWindows, window: Window, size: tuple[int, int]) -> MaskWindows:
    """Return the masks of a tile in the image of this size; what lies outside of the image is cut off."""
    moved, (x, y) = MaskWindows(size, len(masks)), window[:2]
    for number in range(len(masks)):
        x0, y0, x1, y1 = masks.window(number)
        left, top, right, bottom = intersect((x0 + x, y0 + y, x1 + x, y1 + y), (0, 0, size[1], size[0]))
        if right > left and bottom > top:
            crop = masks.crop(number)[top - y - y0 : bottom - y - y0, left - x - x0 : right - x - x0]
            moved.put(number, (left, top, right, bottom), crop)
    return moved


def _move_objects(result: Segmentation, tile: Tile, size: tuple[int, int]) -> list[_Part]:
    """Return the objects of a tile in pixels of the image of this size, without those that lie outside of it."""
    masks, (x, y) = move_masks(result.windows, tile.window, size), tile.window[:2]
    parts = []
    for number, (x0, y0, x1, y1) in enumerate(result.boxes.tolist()):
        box = (max(0.0, x0 + x), max(0.0, y0 + y), min(float(size[1]), x1 + x), min(float(size[0]), y1 + y))
        if box[2] > box[0] and box[3] > box[1]:
            label, score = int(result.labels[number]), float(result.scores[number])
            quality = 0.0 if result.quality is None else float(result.quality[number])
            parts.append(_Part(tile, box, label, score, quality, masks.window(number), masks.crop(number)))
    return parts


def _group(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Group the parts of each object, the best-scored first."""
    owner = list(range(len(parts)))

    def find(number: int) -> int:
        while owner[number] != number:
            number = owner[number]
        return number

    for first, one in enumerate(parts):
        for second in range(first + 1, len(parts)):
            if one.label == parts[second].label and _is_same(one, parts[second]):
                owner[find(second)] = find(first)
    groups: dict[int, list[_Part]] = {}
    for number, part in enumerate(parts):
        groups.setdefault(find(number), []).append(part)
    return [sorted(group, key=lambda part: -part.score) for group in groups.values()]


def _is_same(one: _Part, other: _Part) -> bool:
    """Return whether two masks agree where their tiles overlap."""
    common = intersect(one.tile.window, other.tile.window)
    reached = intersect(common, one.area)
    if one.tile == other.tile or min(reached[2] - reached[0], reached[3] - reached[1]) <= 0:
        return False
    first, second = one.pixels(common), other.pixels(common)
    return bool(np.count_nonzero(first & second) > SAME_OBJECT * np.count_nonzero(first | second))


def _join(group: Sequence[_Part], size: tuple[int, int]) -> _Part:
    """Return the object that the parts show: the best one that shows it whole, or else their union."""
    whole = [part for part in group if part.is_whole(size)]
    if whole or len(group) == 1:
        best = whole[0] if whole else group[0]
        return replace(best, score=group[0].score)
    x0, y0, x1, y1 = enclose([part.area for part in group])
    mask = np.zeros((y1 - y0, x1 - x0), bool)
    for part in group:
        seen = part.pixels((x0, y0, x1, y1))
        for other in group:
            if other.tile != part.tile:
                left, top, right, bottom = intersect(other.tile.owned, (x0, y0, x1, y1))
                if right > left and bottom > top:
                    seen[top - y0 : bottom - y0, left - x0 : right - x0] = False
        mask = mask | seen
    box = enclose([part.box for part in group])
    lowest = min(part.quality for part in group)
    return replace(group[0], box=box, quality=lowest, area=(x0, y0, x1, y1), mask=mask)
