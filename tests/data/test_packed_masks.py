"""Packed masks: packing and unpacking are lossless for any number of objects, overlapping or not."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dasnet_lightning.data.packed_masks import (
    FILLED_BIT,
    VOID_BIT,
    empty_masks,
    find_empty,
    join_masks,
    pack_index_map,
    pack_masks,
    unpack_masks,
    unpack_void,
)
from dasnet_lightning.data.sources.masks import MaskShape, check_segmentation, pack_shapes

SIZE = (30, 43)


def blobs(count: int, density: float = 0.3) -> np.ndarray:
    return np.random.default_rng(count).random((count, *SIZE)) < density


@pytest.mark.parametrize("count", [0, 1, 6, 7, 14, 15, 40])
def test_masks_and_void_come_back(count: int) -> None:
    masks, void = blobs(count), blobs(1)[0]
    packed = pack_masks(masks, void)
    assert len(packed) == count
    assert packed.planes.shape == (1 + (count + 1) // 8, *SIZE)
    np.testing.assert_array_equal(unpack_masks(packed), masks)
    np.testing.assert_array_equal(unpack_void(packed), void)
    assert not (packed.planes[0] & FILLED_BIT).any()
    np.testing.assert_array_equal(join_masks(packed), masks.any(axis=0))
    assert unpack_void(pack_masks(masks)) is None
    some = list(range(count))[::-3]
    np.testing.assert_array_equal(unpack_masks(packed.select(some)), masks[some])
    np.testing.assert_array_equal(join_masks(packed.select(some)), masks[some].any(axis=0))


def test_empty_masks_are_found_among_the_bits_of_others() -> None:
    masks = blobs(20)
    masks[[3, 9, 19]] = False
    packed = pack_masks(masks, np.ones(SIZE, bool))
    assert np.flatnonzero(find_empty(packed)).tolist() == [3, 9, 19]
    assert find_empty(packed.select([9, 2])).tolist() == [True, False]
    assert find_empty(empty_masks(SIZE, 2)).tolist() == [True, True]
    assert find_empty(empty_masks(SIZE, 0)).shape == (0,)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32])
def test_an_index_picture_is_cut_into_its_objects(kind: type) -> None:
    top = 40 if kind is np.uint8 else 300
    picture = np.random.default_rng(0).integers(0, top + 1, SIZE).astype(kind)
    picture[picture == 7] = 255
    numbers = [5, 1, 40, 2, 3, 4, 6, 8, 9, 10, 11, top, 77]
    packed = pack_index_map(picture, numbers, 255)
    np.testing.assert_array_equal(unpack_masks(packed), [picture == number for number in numbers])
    np.testing.assert_array_equal(unpack_void(packed), picture == 255)
    assert not (pack_index_map(picture, [1]).planes[0] & VOID_BIT).any()


def test_a_picture_of_yes_and_no() -> None:
    picture = blobs(1)[0]
    np.testing.assert_array_equal(unpack_masks(pack_index_map(picture, [1, 2])), [picture, np.zeros_like(picture)])


def test_shapes_are_drawn_one_over_the_other() -> None:
    dense = blobs(11, 0.02)
    dense[0], dense[1] = True, False
    dense[1, -1, -1] = dense[2, 0, 0] = True
    values = [
        {"size": list(SIZE), "counts": coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]} for mask in dense
    ]
    shapes = [check_segmentation(value, SIZE).shape for value in values]
    triangle = MaskShape(polygons=(np.array([3, 3, 30, 5, 9, 25.0]),))
    nothing = MaskShape(counts=np.array([SIZE[0] * SIZE[1]]))
    packed = pack_shapes([*shapes, triangle, nothing], SIZE)
    masks = unpack_masks(packed)
    np.testing.assert_array_equal(masks[:11], dense)
    expected = coco_mask.decode(coco_mask.frPyObjects([triangle.polygons[0].tolist()], *SIZE))[..., 0]
    np.testing.assert_array_equal(masks[11], expected.astype(bool))
    assert not masks[12].any()
    assert packed.planes.flags.c_contiguous
    assert pack_shapes([], SIZE).planes.shape == (1, *SIZE)
