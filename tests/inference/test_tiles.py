"""Tiles of large images, with known answers: the same objects as alone, cut ones joined, none twice."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from dasnet_lightning.errors import ConfigError, DataError
from dasnet_lightning.inference.prepare import PreparedImage
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.inference.segmenter import Segmenter
from dasnet_lightning.inference.tile_joining import place_tiles
from dasnet_lightning.inference.tiles import segment_tiled, stream_tiled
from dasnet_lightning.mask_windows import MaskWindows

TILE = 128  # the input of the small network
RED, GREEN = (250, 10, 10), (10, 250, 10)


def test_tiles_cover_the_image_and_each_pixel_has_one_owner() -> None:
    for size, tile, overlap in (((300, 500), 128, 0.2), ((128, 129), 128, 0.5), ((40, 300), 128, 0.0)):
        owners = np.zeros(size, int)
        tiles = place_tiles(size, tile, overlap)
        for item in tiles:
            x0, y0, x1, y1 = item.owned
            owners[y0:y1, x0:x1] += 1
            assert item.window[0] <= x0
            assert item.window[3] >= y1
        assert (owners == 1).all()
        starts = sorted({item.window[0] for item in tiles})
        assert all(high - low <= round(tile * (1 - overlap)) for low, high in pairwise(starts))
    with pytest.raises(ConfigError, match=r"overlap=0\.95"):
        place_tiles((300, 300), 128, 0.95)


def test_an_image_made_of_small_ones_has_their_objects(make_segmenter) -> None:
    segmenter = make_segmenter()
    small = [np.random.default_rng(n).integers(0, 256, (TILE, TILE, 3), dtype=np.uint8) for n in range(4)]
    large = np.concatenate([np.concatenate(small[:2], axis=1), np.concatenate(small[2:], axis=1)])
    found = segment_tiled(segmenter, large, tile=TILE, overlap=0.0)
    alone = [segmenter.segment(image) for image in small]
    assert len(found) == sum(map(len, alone)) > 4
    assert (found.scores.diff() <= 0).all()
    for number, result in enumerate(alone):
        x, y = TILE * (number % 2), TILE * (number // 2)
        assert torch.equal(found.semantic[y : y + TILE, x : x + TILE], result.semantic)
        for box, score, mask in zip(result.boxes, result.scores, result.masks, strict=True):
            near = (found.boxes - box - torch.tensor([x, y, x, y])).abs().amax(dim=1)
            match = int(near.argmin())
            assert near[match] < 1e-2
            assert abs(found.scores[match] - score) < 1e-5
            assert torch.equal(found.masks[match, y : y + TILE, x : x + TILE], mask)
            assert found.masks[match].sum() == mask.sum()


class ColorFinder(Segmenter):
    """Finds each connected blob of red (class 1) and green (class 2) exactly, in whatever it is shown."""

    def _segment_batch(self, batch):
        return [self.find(image) for image in batch]

    def find(self, image: PreparedImage) -> Segmentation:
        boxes, labels, masks = [], [], []
        semantic = torch.zeros(image.size, dtype=torch.int64)
        for label, color in ((1, RED), (2, GREEN)):
            count, blobs = cv2.connectedComponents((image.pixels == color).all(axis=2).astype(np.uint8))
            for blob in range(1, count):
                ys, xs = np.nonzero(blobs == blob)
                boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                labels.append(label)
                masks.append(torch.from_numpy(blobs == blob))
                semantic[masks[-1]] = label
        stack = torch.stack(masks) if masks else torch.zeros(0, *image.size, dtype=torch.bool)
        return Segmentation(
            image=image.pixels,
            boxes=torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
            scores=torch.linspace(0.9, 0.5, len(boxes)),
            semantic=semantic,
            class_names=self.class_names,
            masks=MaskWindows.of(stack),
        )


@pytest.mark.parametrize("overlap", [0.2, 0.5])
def test_objects_that_borders_cut_are_joined_and_none_is_found_twice(make_segmenter, overlap: float) -> None:
    base = make_segmenter()
    finder = ColorFinder(base.model, base.class_names, base.options)
    image = np.full((300, 500, 3), 90, np.uint8)
    ys, xs = np.mgrid[:300, :500]
    image[(xs - 118) ** 2 + (ys - 120) ** 2 < 40**2] = RED  # cut by borders both ways
    image[200:220, 20:480] = GREEN  # through all tiles of a row
    image[(xs - 300) ** 2 + (ys - 60) ** 2 < 6**2] = RED
    image[100:110, 230:250] = GREEN
    image[100:110, 252:272] = GREEN  # close beside it
    image[290:300, 490:500] = RED  # in the corner
    truth = finder.find(PreparedImage(image, torch.zeros(1, 1, 3, dtype=torch.uint8), None))
    found = segment_tiled(finder, image, tile=TILE, overlap=overlap)
    assert len(found) == len(truth) == 6
    assert torch.equal(found.semantic, truth.semantic)
    expected = {tuple(box): mask for box, mask in zip(truth.boxes.tolist(), truth.masks, strict=True)}
    for box, label, mask in zip(found.boxes.tolist(), found.labels.tolist(), found.masks, strict=True):
        assert torch.equal(expected.pop(tuple(box)), mask)
        assert (truth.semantic[mask] == label).all()
    assert not expected


def test_an_image_smaller_than_a_tile_and_one_without_objects(make_segmenter) -> None:
    base = make_segmenter()
    finder = ColorFinder(base.model, base.class_names, base.options)
    image = np.full((40, 60, 3), 90, np.uint8)
    assert len(segment_tiled(finder, image, tile=TILE)) == 0
    image[:10, :10] = RED
    found = segment_tiled(finder, image, tile=TILE)
    assert found.boxes.tolist() == [[0, 0, 10, 10]]
    assert found.masks.sum() == 100


def test_given_boxes_are_segmented_in_the_tile_that_contains_them(make_segmenter) -> None:
    segmenter = make_segmenter()
    image = np.random.default_rng(0).integers(0, 256, (TILE, 3 * TILE, 3), dtype=np.uint8)
    boxes = [[140.0, 20, 180, 60], [10, 10, 50, 60], [60, 5, 300, 120]]  # the last one is larger than a tile
    found = segment_tiled(segmenter, image, boxes, ["star", 1, 2], tile=TILE, overlap=0.0)
    assert found.boxes.tolist() == boxes
    assert found.labels.tolist() == [3, 1, 2]
    second = segmenter.segment(image[:, TILE : 2 * TILE], [[12, 20, 52, 60]], [3])
    assert torch.equal(found.masks[0, :, TILE : 2 * TILE], second.masks[0])
    first = segmenter.segment(image[:, :TILE], boxes[1:2], [1])
    assert torch.equal(found.masks[1, :, :TILE], first.masks[0])
    assert not found.masks[2, :, :59].any()
    assert not found.masks[2, :, 301:].any()
    with pytest.raises(ConfigError, match=r"box 0: .* lies outside the image of 384x128"):
        segment_tiled(segmenter, image, [[400, 1, 420, 9]], [1], tile=TILE)


def test_many_images_in_tiles_survive_a_broken_one(make_segmenter, tmp_path) -> None:
    base = make_segmenter()
    finder = ColorFinder(base.model, base.class_names, base.options)
    image = np.full((130, 200, 3), 90, np.uint8)
    image[50:70, 90:140] = GREEN
    stream = stream_tiled(finder, [image, tmp_path / "missing.png", image], tile=TILE)
    assert next(stream).boxes.tolist() == [[90, 50, 140, 70]]
    with pytest.raises(DataError, match=r"missing\.png"):
        next(stream)
    assert len(next(stream)) == 1
    assert next(stream, None) is None
