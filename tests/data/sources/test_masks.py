"""Segmentations are validated before any decoder sees them, and decode to the right pixels."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dasnet_lightning.data.packed_masks import empty_masks, pack_index_map, pack_masks, unpack_masks
from dasnet_lightning.data.records import MaskState
from dasnet_lightning.data.sources.masks import (
    MaskShape,
    check_indices,
    check_mask,
    check_segmentation,
    collect_masks,
    is_rectangle,
    pack_shapes,
    parse_counts,
)

SIZE = (30, 40)


def blob(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).random(size) < 0.3


def compressed(mask: np.ndarray) -> dict[str, Any]:
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def decoded(value: Any, size: tuple[int, int] = SIZE) -> np.ndarray:
    checked = check_segmentation(value, size)
    assert checked.state is MaskState.PRESENT, checked.reason
    assert checked.shape is not None
    return unpack_masks(pack_shapes([checked.shape], size))[0]


@pytest.mark.parametrize("value", [None, [], [[]]])
def test_nothing_drawn_is_absent(value: Any) -> None:
    assert check_segmentation(value, SIZE).state is MaskState.ABSENT


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_decode_to_the_mask(seed: int) -> None:
    mask = blob(seed)
    np.testing.assert_array_equal(decoded(compressed(mask)), mask)
    np.testing.assert_array_equal(decoded(uncompressed(mask)), mask)


def test_long_runs_decode_to_the_mask() -> None:
    mask = np.zeros((900, 1200), dtype=bool)
    mask[100:800, 300:310] = True
    mask[0, 0] = True
    np.testing.assert_array_equal(decoded(compressed(mask), (900, 1200)), mask)


def test_polygons_decode_to_the_mask() -> None:
    mask = decoded([[5, 5, 15, 5, 15, 15, 5, 15], [20, 20, 30, 20, 30, 25, 20, 25]])
    expected = np.zeros(SIZE, dtype=bool)
    expected[5:15, 5:15] = expected[20:25, 20:30] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[1, 1, 5, 5]], "fewer than three distinct points"),
        ([[1, 1, 5, 5, 1, 1, 5, 5]], "fewer than three distinct points"),
        ([[1, 1, 5, 5, 1]], "odd count"),
        ([[1, 1, 5, 5, 1, 9], []], "polygon 2 of 2 has fewer"),
        ([[1, 1, 5, float("nan"), 9, 9]], "not finite"),
        ([[1, 1, 5, float("inf"), 9, 9]], "not finite"),
        ([[1, 1, 5, 1e9, 9, 9]], "more than 4 image sizes"),
        ([[1, 1, -1e9, 5, 9, 9]], "more than 4 image sizes"),
        ([[1, 1, "5", 5, 9, 9]], "not a number"),
        ([[1, 1, 10**400, 0.5, 9, 9]], ""),
        ([1, 2, 3, 4, 5, 6], "polygon 1 is not a list"),
        ("abc", "neither polygons nor run lengths"),
        ({"counts": [1]}, "neither polygons nor run lengths"),
        ({"size": [40, 30], "counts": [1200]}, "for size"),
        ({"size": 5, "counts": [1200]}, ""),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "for size"),
        ({"size": [30, 40], "counts": [10, 20]}, "sum to 30, expected 1200"),
        ({"size": [30, 40], "counts": [1300, -200, 100]}, "negative"),
        ({"size": [30, 40], "counts": [600.0, 600]}, "not a list of integers"),
        ({"size": [30, 40], "counts": [2**70, 600]}, "not a list of integers"),
        ({"size": [30, 40], "counts": [-(2**70), 600]}, ""),
        ({"size": [30, 40], "counts": [1200]}, "empty"),
        ({"size": [30, 40], "counts": ""}, "damaged or truncated"),
        ({"size": [30, 40], "counts": "abc{"}, "damaged"),
        ({"size": [30, 40], "counts": "é"}, ""),
        ({"size": [30, 40], "counts": "oooooooooo1"}, "larger than any image"),
        ({"size": [30, 40], "counts": 7}, "not a list of integers"),
    ],
)
def test_what_cannot_be_used_is_invalid_with_a_reason(value: Any, words: str) -> None:
    checked = check_segmentation(value, SIZE)
    assert checked.state is MaskState.INVALID
    assert checked.shape is None
    assert checked.reason
    assert words in checked.reason


def test_cut_short_run_lengths_are_noticed() -> None:
    value = compressed(blob(3))
    for cut in range(1, 8):
        short = {**value, "counts": value["counts"][:-cut]}
        assert check_segmentation(short, SIZE).state is MaskState.INVALID


def test_counts_agree_with_the_uncompressed_form() -> None:
    mask = blob(7)
    assert parse_counts(compressed(mask)["counts"]).tolist() == uncompressed(mask)["counts"]


def test_a_mask_must_lie_in_its_box() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[5:15, 5:15] = True
    plane = mask.astype(np.uint8) * 4 + ~mask  # other bits do not matter
    assert check_mask(plane, 4, (5, 5, 15, 15)) == ""
    assert check_mask(plane, 4, (7, 7, 13, 13)) == "", "outlines and boxes may differ by a few pixels"
    assert "only 0 % of the mask" in check_mask(plane, 4, (25, 20, 35, 28))
    assert check_mask(plane, 8, (5, 5, 15, 15)) == "the mask is empty"


def test_masks_are_collected_with_their_reasons() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[5:15, 5:15] = True
    planes = pack_masks(np.stack([mask, mask, mask]))
    masks = collect_masks(planes, [(5, 5, 15, 15), (30, 20, 35, 28), (5, 5, 15, 15)], ["", "", "torn"])
    assert masks.valid == (True, False, False)
    assert masks.reasons[0] == ""
    assert masks.reasons[2] == "torn"
    np.testing.assert_array_equal(masks.masks, [mask, mask, mask])
    assert masks.void is None
    assert collect_masks(empty_masks(SIZE, 0), [], []).masks.shape == (0, *SIZE)


def test_objects_are_cut_out_by_their_index() -> None:
    picture = np.zeros(SIZE, dtype=np.uint8)
    picture[1, 1], picture[2, 2], picture[3, 3] = 1, 2, 255
    masks = unpack_masks(pack_index_map(picture, [2, 1], 255))
    assert [np.argwhere(mask).tolist() for mask in masks] == [[[2, 2]], [[1, 1]]]
    assert check_indices(picture, 2) == ""
    assert "indices up to 2 but the XML has 1 objects" in check_indices(picture, 1)
    assert check_indices(np.full(SIZE, 255, np.uint8), 0) == ""


def test_rectangles_are_recognized() -> None:
    box = (5.0, 5.0, 15.0, 12.0)
    assert is_rectangle(MaskShape((np.array([5, 5, 15, 5, 15, 12, 5, 12.0]),)), box)
    assert is_rectangle(MaskShape((np.array([5, 5, 15, 5, 15, 12, 5, 12, 5, 5.0]),)), box)
    assert not is_rectangle(MaskShape((np.array([10, 5, 15, 8, 10, 12, 5, 8.0]),)), box)
    assert not is_rectangle(None, box)
