"""Source in memory with images on disk, which records every opening of masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dasnet_lightning.data.packed_masks import pack_masks
from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, ObjectRecord, Problem, Source


def extent(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return the tight box of a mask as xyxy edges."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def draw_shapes(size: tuple[int, int], count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw an image with `count` ellipses or rectangles at least 12 pixels wide; return it, their masks and tight boxes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        half = rng.uniform(6, min(size) / 3, 2)
        center = rng.uniform(half, np.array(size) - half)
        inside = np.stack([y + 0.5 - center[0], x + 0.5 - center[1]]) / half[:, None, None]
        mask[:] = (inside**2).sum(0) <= 1 if rng.random() < 0.5 else (abs(inside) <= 1).all(0)
    image = rng.integers(0, 120, (*size, 3), dtype=np.uint8)
    for number, mask in enumerate(masks):
        image[mask] = (250, 40 + number, 250 - number)
    return image, masks, np.array([extent(mask) for mask in masks]).reshape(-1, 4)


@dataclass
class FakeSource(Source):
    class_names: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    masks: dict[str, np.ndarray]
    root: Path
    problems: tuple[Problem, ...] = ()
    invalid: frozenset[str] = frozenset()  # object ids whose mask turns out to be unusable
    void: np.ndarray | None = None
    opened: list[str] = field(default_factory=list)
    category_ids: dict[int, int | str] = field(default_factory=dict)

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        self.opened.append(record.image_id)
        assert all(record.objects[i].mask is MaskState.PRESENT for i in indices)
        valid = tuple(record.objects[i].object_id not in self.invalid for i in indices)
        reasons = tuple("" if good else "damaged" for good in valid)
        return Masks(pack_masks(self.masks[record.image_id][list(indices)], self.void), valid, reasons)


def make_source(root: Path, objects: Sequence[Sequence[MaskState]], size: tuple[int, int] = (60, 80)) -> FakeSource:
    """Build a source with one image per entry of `objects`, which gives the mask state of each of its objects."""
    root.mkdir(parents=True, exist_ok=True)
    records, all_masks = [], {}
    for number, states in enumerate(objects):
        image, masks, boxes = draw_shapes(size, len(states), seed=number)
        path = root / f"img{number}.png"
        Image.fromarray(image).save(path)
        items = tuple(
            ObjectRecord(f"{number}-{i}", tuple(boxes[i].tolist()), 1 + i % 2, state) for i, state in enumerate(states)
        )
        records.append(ImageRecord(path.stem, path, size, items))
        all_masks[path.stem] = masks
    return FakeSource(("background", "round", "square"), tuple(records), all_masks, root)
