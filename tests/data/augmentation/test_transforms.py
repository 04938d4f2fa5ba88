from random import Random

import albumentations as A
import numpy as np
import pytest
from data_fakes import draw_shapes, extent

from dasnet_lightning.data.augmentation import transforms
from dasnet_lightning.data.augmentation.objects import Augmented
from dasnet_lightning.data.augmentation.photometric import Distortion, distort, draw_distortion
from dasnet_lightning.data.augmentation.ssd_crop import (
    centers_inside,
    draw_crop,
    draw_expand,
    pairwise_iou,
    view_image,
    view_mask,
)
from dasnet_lightning.data.augmentation.transforms import MEAN_COLOR, TRANSFORMS, Transform, build_transform
from dasnet_lightning.data.packed_masks import pack_masks
from dasnet_lightning.errors import ConfigError, DataError, UnknownNameError

SIZE = (96, 112)
NAMES = ("ssd", "segment", "flip", "d4", "none")


def run(
    transform: Transform,
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray,
    index: np.ndarray,
    void: np.ndarray | None,
    seed: int,
    labels: np.ndarray | None = None,
) -> Augmented:
    return transform(image, boxes, pack_masks(masks, void), index, seed, labels)


def augment(transform: Transform, seed: int, count: int = 3, shapes: int | None = None) -> tuple[Augmented, np.ndarray]:
    image, masks, boxes = draw_shapes((90, 120), count, seed=seed if shapes is None else shapes)
    return run(transform, image, boxes, masks, np.arange(count), None, seed), boxes


def test_names() -> None:
    assert TRANSFORMS.names() == tuple(sorted(NAMES))
    with pytest.raises(UnknownNameError, match="did you mean 'ssd'"):
        build_transform("sdd", SIZE)


@pytest.mark.parametrize("name", NAMES)
def test_boxes_and_masks_stay_together(name: str) -> None:
    transform = build_transform(name, SIZE)
    survivors = 0
    for seed in range(150):
        out, _ = augment(transform, seed)
        assert out.image.shape == (*SIZE, 3)
        assert out.image.dtype == np.uint8
        assert out.masks.shape[1:] == out.void.shape == SIZE
        np.testing.assert_array_equal(out.mask_index, np.arange(len(out.kept)))
        for box, mask in zip(out.boxes, out.masks, strict=True):
            tight = np.array(extent(mask))
            # the mask never leaves its box, up to the pixel that the box cuts
            assert (tight[:2] >= box[:2] - 1).all()
            assert (tight[2:] <= box[2:] + 1).all()
            survivors += 1
            uncropped = (box[:2] > 0).all() and (box[2:] < SIZE[::-1]).all()
            if uncropped:
                np.testing.assert_allclose(tight, box, atol=1.5)
    assert survivors > 150


@pytest.mark.parametrize("name", NAMES)
def test_the_object_under_a_mask_is_the_object_in_the_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # a white object on black: what is brighter than the middle is the mask, up to a part of its outline
    monkeypatch.setattr(transforms, "distort", lambda image, distortion: image)
    transform = build_transform(name, (64, 64))
    checked = 0
    for seed in range(80):
        image, masks, boxes = draw_shapes((90, 120), 1, seed)
        image[:] = np.where(masks[0][..., None], 255, 0)
        out = run(transform, image, boxes, masks, np.arange(1), None, seed)
        if not len(out.kept) or (out.masks[0] | out.void).all():
            continue
        bright, mask = out.image[..., 1] > 127, out.masks[0]
        eroded = mask[1:-1, 1:-1] & mask[2:, 1:-1] & mask[:-2, 1:-1] & mask[1:-1, 2:] & mask[1:-1, :-2]
        outline = mask.sum() - eroded.sum()
        assert ((bright != mask) & ~out.void).sum() <= 0.4 * outline
        checked += 1
    assert checked > 60


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_result(name: str) -> None:
    first, second = build_transform(name, SIZE), build_transform(name, SIZE)
    augment(second, 99)  # what was drawn before must not matter
    for seed in (0, 7, 2**63 - 1):
        one, two = augment(first, seed, shapes=5)[0], augment(second, seed, shapes=5)[0]
        for field in ("image", "boxes", "kept", "masks", "mask_index", "void"):
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field))


def test_seeds_differ_and_steps_draw_independently() -> None:
    transform = Transform([transforms.SSDWindow(SIZE, scale=None), transforms.checked_step(A.HorizontalFlip, p=0.5)])
    seen = set()
    for seed in range(60):
        image = np.zeros((40, 40, 3), np.uint8)
        image[:, :20] = 255
        out = run(
            transform, image, np.array([[0.0, 0, 20, 40]]), np.zeros((0, 40, 40), bool), np.zeros(0, int), None, seed
        )
        expanded = bool(out.void.any())
        flipped = bool(out.image[~out.void][0, 0] < 128)
        seen.add((expanded, flipped))
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


def test_keeps_the_input() -> None:
    image, masks, boxes = draw_shapes((90, 120), 3, 0)
    copies = image.copy(), masks.copy(), boxes.copy()
    for name in NAMES:
        transform = build_transform(name, (90, 120))
        for seed in range(10):
            run(transform, image, boxes, masks, np.arange(3), None, seed)
    for now, before in zip((image, masks, boxes), copies, strict=True):
        np.testing.assert_array_equal(now, before)


def test_expand_fills_with_the_mean_and_marks_void() -> None:
    transform = Transform([transforms.SSDWindow(SIZE, expand=1.0, scale=None), transforms.PhotometricDistortion()])
    void_in = np.zeros((90, 120), bool)
    void_in[40:50, 60:80] = True
    for seed in range(20):
        image, masks, boxes = draw_shapes((90, 120), 2, seed)
        out = run(transform, image, boxes, masks, np.arange(2), void_in, seed)
        filled = (out.image == MEAN_COLOR).all(axis=2)
        assert out.void.sum() >= filled.sum() > 0
        assert not (filled & ~out.void).sum() > 20  # a pixel of the image may have that color by chance
        assert (out.void & ~filled).any()  # the void that came in
        assert not (out.masks & filled).any()


def test_crop_keeps_centers_and_drops_the_rest() -> None:
    transform = Transform([transforms.SSDWindow(SIZE, expand=0.0)])
    dropped = 0
    for seed in range(150):
        out, boxes = augment(transform, seed, count=4)
        assert len(out.kept) >= 1
        assert len(set(out.kept.tolist())) == len(out.kept)
        dropped += len(boxes) - len(out.kept)
        assert (out.boxes[:, 2:] - out.boxes[:, :2] >= 1).all()
        assert (out.boxes >= 0).all()
        assert (out.boxes[:, 2:] <= SIZE[::-1]).all()
    assert dropped > 50


def test_drawn_crops_satisfy_their_conditions() -> None:
    boxes = np.array([[10.0, 10, 60, 50], [70, 20, 110, 80]])
    size = (90, 120)
    drawn = [draw_crop(boxes, size, np.random.default_rng(seed)) for seed in range(400)]
    windows = np.array([window for window in drawn if window is not None])
    assert 0 < len(windows) < 400 - 400 // 14  # "no crop" happens
    assert centers_inside(boxes, windows).any(axis=1).all()
    shape = (windows[:, 2:] - windows[:, :2]) / (120, 90)
    assert shape.min() >= 0.3 * 0.5**0.5 - 0.01
    assert (windows >= 0).all()
    assert (windows[:, 2:] <= (120, 90)).all()
    # every threshold occurs: some crops overlap little, some much
    best = pairwise_iou(windows.astype(float), boxes).max(axis=1)
    assert best.min() < 0.3 < 0.7 < best.max()


def reference_view(
    pixels: np.ndarray, window: tuple[int, int, int, int], size: tuple[int, int], fill: int
) -> np.ndarray:
    """Return the nearest pixels by definition, one by one."""
    x0, y0, x1, y1 = window
    result = np.full(size, fill, np.uint8)
    for row in range(size[0]):
        for column in range(size[1]):
            y = int(np.floor(y0 + (row + 0.5) * (y1 - y0) / size[0]))
            x = int(np.floor(x0 + (column + 0.5) * (x1 - x0) / size[1]))
            if 0 <= y < pixels.shape[0] and 0 <= x < pixels.shape[1]:
                result[row, column] = pixels[y, x]
    return result


@pytest.mark.parametrize(
    "window", [(0, 0, 40, 30), (3, 5, 20, 29), (-20, -7, 90, 60), (-9, 4, 18, 31), (30, 20, 50, 60)]
)
@pytest.mark.parametrize("size", [(16, 24), (50, 70), (16, 70), (30, 40)])
def test_views(window: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    mask = (np.add.outer(np.arange(30) // 7, np.arange(40) // 9) % 2 + 1).astype(np.uint8)
    view, reference = view_mask(mask, window, size, 5), reference_view(mask, window, size, 5)
    assert (view != reference).mean() < 0.02  # pixel centers on a border may fall to either side
    # a smooth ramp stays where it was: the image moves exactly as the mask does
    ramp = np.repeat((np.add.outer(2 * np.arange(30), 3 * np.arange(40)))[..., None], 3, axis=2).astype(np.uint8)
    rows = window[1] + (np.arange(size[0]) + 0.5) * (window[3] - window[1]) / size[0] - 0.5
    columns = window[0] + (np.arange(size[1]) + 0.5) * (window[2] - window[0]) / size[1] - 0.5
    expected = np.add.outer(2 * rows, 3 * columns)
    deep = np.outer((rows > 3) & (rows < 26), (columns > 3) & (columns < 36))
    assert deep.any()
    assert abs(view_image(ramp, window, size)[..., 1] - expected)[deep].max() < 2.5


def test_iou_and_expand_arithmetic() -> None:
    iou = pairwise_iou(np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 15, 10], [20, 20, 30, 30]]))
    np.testing.assert_allclose(iou, [[1 / 3, 0]])
    for seed in range(50):
        x0, y0, x1, y1 = draw_expand((30, 50), 4.0, np.random.default_rng(seed))
        assert x0 <= 0 <= 50 <= x1
        assert y0 <= 0 <= 30 <= y1
        assert x1 - x0 <= 200


@pytest.mark.parametrize("name", NAMES)
def test_images_without_objects_or_masks(name: str) -> None:
    transform = build_transform(name, SIZE)
    image, _, boxes = draw_shapes((90, 120), 2, 0)
    none, no_index = np.zeros((0, 90, 120), bool), np.zeros(0, np.int64)
    for seed in range(30):
        empty = run(transform, image, np.zeros((0, 4)), none, no_index, None, seed)
        assert empty.boxes.shape == (0, 4)
        assert empty.masks.shape == (0, *SIZE)
        assert empty.kept.shape == empty.mask_index.shape == (0,)
        boxes_only = run(transform, image, boxes, none, no_index, None, seed)
        assert len(boxes_only.boxes) == len(boxes_only.kept)
        assert boxes_only.masks.shape == (0, *SIZE)


def test_masks_of_some_objects_follow_their_objects() -> None:
    transform = build_transform("ssd", SIZE)
    cut = 0
    for seed in range(80):
        image, masks, boxes = draw_shapes((90, 120), 4, seed)
        out = run(transform, image, boxes, masks[[3, 1]], np.array([3, 1]), None, seed)
        owners = out.kept[out.mask_index]
        assert set(owners.tolist()) == set(out.kept.tolist()) & {1, 3}
        assert out.masks.any(axis=(1, 2)).all()
        cut += 4 - len(out.kept)
        for box, mask in zip(out.boxes[out.mask_index], out.masks, strict=True):
            tight = np.array(extent(mask))
            assert (tight[:2] >= box[:2] - 1).all()
            assert (tight[2:] <= box[2:] + 1).all()
    assert cut > 0


class FixedCrop(transforms.SSDWindow):
    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        return {"window": (0, 0, 50, 90)}


def test_rest_of_a_removed_object_is_void_only_in_boxes_of_its_class() -> None:
    transform = Transform([FixedCrop((90, 50))])
    image = np.zeros((90, 120, 3), np.uint8)
    boxes = np.array([[0.0, 0, 50, 40], [40, 10, 100, 30], [40, 60, 100, 80]])  # only the first keeps its center
    masks = np.zeros((2, 90, 120), bool)
    masks[0, 0:40, 0:45] = True
    masks[1, 12:28, 40:100] = True
    augmented = lambda labels: run(transform, image, boxes, masks, np.array([0, 1]), None, 0, np.array(labels))  # noqa: E731
    same, other = augmented([1, 1, 1]), augmented([1, 2, 1])
    assert same.kept.tolist() == other.kept.tolist() == [0]
    expected = np.zeros((90, 50), bool)
    expected[12:28, 45:50] = True  # the visible mask, less what the kept mask covers
    np.testing.assert_array_equal(same.void, expected)
    assert not other.void.any()


def test_nothing_is_removed_in_evaluation() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    masks = np.zeros((2, 400, 400), bool)
    masks[0, 101, 303] = True
    masks[1, 10:200, 10:200] = True
    boxes = np.array([[303.0, 101, 304, 102], [10, 10, 200, 200]])
    out = run(build_transform("none", (40, 40)), image, boxes, masks, np.arange(2), None, 0)
    assert out.kept.tolist() == [0, 1]
    assert np.argwhere(out.masks[0]).tolist() == [[10, 30]]
    np.testing.assert_allclose(out.boxes[0], [30.3, 10.1, 30.4, 10.2], atol=1e-4)
    trained = run(build_transform("flip", (40, 40)), image, boxes, masks, np.arange(2), None, 0)
    assert trained.kept.tolist() == [1]  # less than a pixel wide


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [9, 5, 5, 9], [200, 5, 210, 9], [np.nan, 5, 9, 9]])
def test_a_box_without_area_is_named(box: list[float]) -> None:
    image, none = np.zeros((20, 30, 3), np.uint8), np.zeros((0, 20, 30), bool)
    boxes = np.array([[1.0, 1, 8, 8], box])
    with pytest.raises(DataError, match=r"object 1: box \[.* has no area"):
        run(build_transform("none", (10, 10)), image, boxes, none, np.zeros(0, int), None, 0)


def test_unknown_arguments_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"HorizontalFlip: .*prob"):
        transforms.checked_step(A.HorizontalFlip, prob=0.5)
    with pytest.raises(ConfigError, match="Resize"):
        transforms.checked_step(A.Resize, height=-1, width=4)
    with pytest.raises(TypeError):
        transforms.SSDWindow(SIZE, ratio=4)
    with pytest.raises(TypeError):
        transforms.PhotometricDistortion(brightness=4)


def test_the_other_albumentations_is_refused() -> None:
    transforms.refuse_albumentationsx(())
    with pytest.raises(ConfigError, match="pip uninstall albumentationsx"):
        transforms.refuse_albumentationsx(("albumentationsx",))


def test_photometric_distortion() -> None:
    gray = np.full((4, 4, 3), 100, np.uint8)
    np.testing.assert_array_equal(distort(gray, Distortion()), gray)
    np.testing.assert_array_equal(distort(gray, Distortion(brightness=20)), gray + 20)
    np.testing.assert_array_equal(distort(gray, Distortion(contrast=1.5)), gray + 50)
    np.testing.assert_array_equal(distort(gray, Distortion(brightness=200, contrast=0.5)), np.full_like(gray, 128))
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    turned = distort(red, Distortion(hue=60))  # yellow, up to the steps of 1.4 degrees
    np.testing.assert_allclose(turned[0, 0], [200, 200, 0], atol=6)
    np.testing.assert_allclose(distort(red, Distortion(saturation=0.5))[0, 0], [200, 100, 100], atol=2)
    drawn = [draw_distortion(Random(seed)) for seed in range(400)]
    assert max(abs(item.brightness) for item in drawn) <= 32
    assert max(abs(item.hue) for item in drawn) <= 18
    assert 0.5 <= min(item.contrast for item in drawn) < max(item.contrast for item in drawn) <= 1.5
    assert 0.4 < np.mean([item.saturation == 1 for item in drawn]) < 0.6
    assert {item.contrast_first for item in drawn} == {True, False}


def test_d4_draws_all_eight_turns_with_their_boxes_and_masks() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[4:10, 6:26] = 200
    masks = np.zeros((1, 40, 40), bool)
    masks[0, 4:10, 6:26] = True
    boxes = np.array([[6.0, 4, 26, 10]])
    seen = set()
    for seed in range(60):
        out = run(build_transform("d4", (40, 40)), image, boxes, masks, np.arange(1), None, seed)
        x0, y0, x1, y1 = out.boxes[0].round().astype(int).tolist()
        np.testing.assert_array_equal(out.masks[0], np.asarray(out.image)[:, :, 0] > 100)
        assert out.masks[0][y0:y1, x0:x1].all()
        assert out.masks[0].sum() == 120
        seen.add((x0, y0, x1, y1))
    assert len(seen) == 8
    wide = run(build_transform("d4", (20, 40)), image, boxes, masks, np.arange(1), None, 3)
    assert wide.masks.shape == (1, 20, 40)
