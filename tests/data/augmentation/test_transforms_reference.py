"""Augmentations against a plain reference: dense masks warped one by one, decisions object by object.

The reference draws from the same two streams in the same order and uses the same windows and look-up tables; everything that
is packed, cut short or left out for speed in the library is done at full length here. Results are equal bit for bit.
"""

from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
from data_fakes import draw_shapes

from dasnet_lightning.data.augmentation.objects import Augmented
from dasnet_lightning.data.augmentation.photometric import distort, draw_distortion
from dasnet_lightning.data.augmentation.ssd_crop import centers_inside, draw_window, pixel_window, view_image, view_mask
from dasnet_lightning.data.augmentation.transforms import MEAN_COLOR, build_transform
from dasnet_lightning.data.packed_masks import pack_masks

SIZE = (70, 100)
KINDS = {  # expand, largest ratio, scale of the crop, flips, distorts
    "ssd": (0.5, 4.0, (0.3, 1.0), True, True),
    "segment": (0.3, 2.0, (0.4, 1.0), True, True),
    "flip": (0.0, 4.0, None, True, False),
    "none": (0.0, 4.0, None, False, False),
}


@dataclass
class Moving:
    """One object on its way: where it was, its box and its mask (None where it has none) in the new picture."""

    former: int
    box: np.ndarray
    mask: np.ndarray | None
    cut: bool
    gone: bool = False


def reference(
    name: str,
    image: np.ndarray,
    boxes: np.ndarray,
    masks: dict[int, np.ndarray],
    void: np.ndarray,
    seed: int,
    labels: list,
) -> tuple[np.ndarray, list[Moving], np.ndarray]:
    expand, ratio, scale, flips, distorts = KINDS[name]
    random, coin = np.random.default_rng(seed), Random(seed)
    coin.random()
    height, width = image.shape[:2]
    sides = np.array([width, height, width, height], float)
    unit = (np.clip(boxes, 0, sides).astype(np.float32) / sides).astype(np.float32).astype(float)
    window = draw_window(unit * sides, (height, width), random, expand, ratio, scale)
    picture = view_image(image, window, SIZE)
    known = view_mask(np.ones((height, width), np.uint8), window, SIZE, 0) == 1
    unknown = view_mask(void.astype(np.uint8), window, SIZE, 0) == 1
    moving = move_all(unit * sides, masks, window)
    if flips and coin.random() < 0.5:
        picture, known, unknown = picture[:, ::-1], known[:, ::-1], unknown[:, ::-1]
        for item in moving:
            item.box = np.array([1 - item.box[2], item.box[1], 1 - item.box[0], item.box[3]])
            item.mask = None if item.mask is None else item.mask[:, ::-1].copy()
    if distorts:
        picture = distort(np.ascontiguousarray(picture), draw_distortion(coin))
    picture = np.where(known[..., None], picture, np.array(MEAN_COLOR, np.uint8))
    out = np.array([SIZE[1], SIZE[0], SIZE[1], SIZE[0]], float)
    for item in moving:
        item.box = np.clip(item.box * out, 0, out) / out * out
        small = ((item.box[2:] - item.box[:2]) < 1).any()
        lost = item.mask is not None and not item.mask.any()
        item.gone = name != "none" and bool(item.cut or small or lost)
        if name == "none" and lost:
            center = (np.argwhere(masks[item.former]).mean(axis=0) + 0.5) / (height, width) * SIZE
            item.mask[tuple(np.minimum(center.astype(int), np.array(SIZE) - 1))] = True
    kept = [item for item in moving if not item.gone]
    return picture, kept, ~known | unknown | leftovers(moving, kept, labels, bool(masks))


def move_all(boxes: np.ndarray, masks: dict[int, np.ndarray], window: tuple[int, int, int, int]) -> list[Moving]:
    """Every object that is still visible, its box from 0 to 1 of the window."""
    moving = []
    x0, y0, x1, y1 = window
    for former, box in enumerate(boxes):
        moved = (box - (x0, y0, x0, y0)) / (x1 - x0, y1 - y0, x1 - x0, y1 - y0)
        inside = centers_inside(moved[None], np.array([[0.0, 0, 1, 1]]))[0, 0]
        moved = np.clip(moved, 0, 1)
        mask = masks.get(former)
        shown = None if mask is None else view_mask(mask.astype(np.uint8), window, SIZE, 0) == 1
        if (moved[2:] - moved[:2] > 1e-6).all():
            moving.append(Moving(former, moved, shown, not inside))
    return moving


def leftovers(moving: list[Moving], kept: list[Moving], labels: list, any_mask: bool) -> np.ndarray:
    """What is left of removed objects in boxes of their own class, and under no kept mask."""
    rest = np.zeros(SIZE, bool)
    for removed in moving if any_mask else []:
        area = np.zeros(SIZE, bool)
        area[pixel_window(removed.box, SIZE)] = True
        area = area if removed.mask is None else removed.mask
        for item in kept if removed.gone else []:
            if labels[item.former] == labels[removed.former]:
                inside = np.zeros(SIZE, bool)
                inside[pixel_window(item.box, SIZE)] = True
                rest |= area & inside
    for item in kept:
        rest &= True if item.mask is None else ~item.mask
    return rest


def compare(out: Augmented, picture: np.ndarray, kept: list[Moving], void: np.ndarray) -> None:
    np.testing.assert_array_equal(out.image, picture)
    assert out.kept.tolist() == [item.former for item in kept]
    boxes = np.array([item.box for item in kept], float).reshape(-1, 4).astype(np.float32)
    np.testing.assert_array_equal(out.boxes, boxes)
    np.testing.assert_array_equal(out.void, void)
    shown = {out.kept[position]: mask for position, mask in zip(out.mask_index, out.masks, strict=True)}
    assert set(shown) == {item.former for item in kept if item.mask is not None}
    for item in kept:
        if item.mask is not None:
            np.testing.assert_array_equal(shown[item.former], item.mask)


@pytest.mark.parametrize("name", KINDS)
def test_equal_to_the_reference(name: str) -> None:
    transform = build_transform(name, SIZE)
    removed = overlapping = voided = 0
    for seed in range(150):
        rng = np.random.default_rng(1000 + seed)
        count = int(rng.integers(0, 20))  # more than eight masks need a second plane, more than fourteen a third
        image, dense, boxes = draw_shapes((90, 130), count, seed)
        if count and seed % 3 == 0:
            boxes[0], dense[0] = (0, 0, 130, 90), rng.random((90, 130)) < 0.5  # a crowd over everything
        if seed % 5 == 0:
            boxes = boxes + rng.uniform(-0.4, 0.4, boxes.shape)
        owners = rng.permutation(count)[: rng.integers(0, count + 1)]
        void = rng.random((90, 130)) < 0.02 if seed % 2 else None
        labels = rng.integers(1, 4, count)
        out = transform(image, boxes, pack_masks(dense[owners], void), owners, seed, labels)
        masks = {int(owner): dense[owner] for owner in owners}
        plain = np.zeros((90, 130), bool) if void is None else void
        compare(out, *reference(name, image, boxes, masks, plain, seed, labels.tolist()))
        removed += count - len(out.kept)
        overlapping += int((out.masks.sum(axis=0) > 1).any())
        voided += int(out.void.any())
    assert overlapping > 50
    assert voided > 50
    assert (removed > 100) == (name in ("ssd", "segment"))
