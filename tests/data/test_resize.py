"""One resizing rule: what `segment` feeds the network is what training and evaluation feed it."""

import numpy as np
import pytest

from dasnet_lightning.data.augmentation.transforms import build_transform
from dasnet_lightning.data.packed_masks import empty_masks
from dasnet_lightning.data.resize import MEAN_COLOR, resize_image


@pytest.mark.parametrize("size", [(1500, 2000), (333, 500), (320, 320), (90, 700), (40, 50)])
def test_inputs_are_those_of_training_to_one_gray_level(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    no_boxes, no_masks = np.zeros((0, 4)), np.zeros(0, np.int64)
    transform = build_transform("none", (320, 320))
    trained = transform(image, no_boxes, empty_masks(size, 0), no_masks, seed=0).image
    difference = np.abs(resize_image(image, (320, 320)).astype(int) - trained)
    assert difference.max() <= 1


def test_a_window_beyond_the_image_has_the_mean_color() -> None:
    image = np.full((20, 40, 3), 200, np.uint8)
    resized = resize_image(image, (80, 80), (0, -10, 40, 30))
    assert (resized[20:60] == 200).all()
    assert (resized[:20] == MEAN_COLOR).all()
    assert (resized[60:] == MEAN_COLOR).all()
