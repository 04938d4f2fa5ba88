"""Given boxes at their limits: smaller than a pixel, at the border, hundreds of them."""

import numpy as np
import pytest
import torch

from dasnet_lightning.functional.boxes import pixel_windows
from dasnet_lightning.inference.segmentation import Segmentation

KINDS = [("instance", "zoom"), ("instance", "light"), ("semantic", "zoom"), ("semantic", "light")]


def assert_inside_boxes(found: Segmentation, count: int) -> None:
    assert len(found) == count
    height, width = found.image.shape[:2]
    for mask, (x0, y0, x1, y1) in zip(found.masks, pixel_windows(found.boxes, (height, width)).tolist(), strict=True):
        outside = mask.clone()
        outside[y0:y1, x0:x1] = False
        assert not outside.any()


@pytest.mark.parametrize(("task", "decoder"), KINDS)
def test_boxes_smaller_than_a_pixel_touch_no_other_pixel(make_segmenter, task: str, decoder: str) -> None:
    segmenter = make_segmenter(task, decoder, foreground_threshold=0.0)
    image = np.random.default_rng(0).integers(0, 256, (90, 300, 3), dtype=np.uint8)
    boxes = [
        [10.3, 20.3, 10.7, 20.7],  # in one pixel
        [50.8, 30.0, 51.2, 60.0],  # 0.4 pixels wide, over a border
        [100.0, 30.0, 100.4, 30.4],
        [299.7, 89.7, 300.0, 90.0],
        [0.0, 0.0, 0.001, 0.001],
        [-5.0, -5.0, 3.0, 3.0],
        [40.0, 25.0, 80.0, 70.0],
    ]
    found = segmenter.segment(image, boxes, [1, 2, 3, 1, 2, 3, 3])
    assert_inside_boxes(found, len(boxes))
    if task == "instance":  # the class map shows the best class of a pixel alone
        assert found.masks[0, 20, 10]
        assert found.masks[6].sum() == 40 * 45


@pytest.mark.parametrize(("task", "decoder"), [("instance", "zoom"), ("semantic", "light")])
def test_hundreds_of_objects_take_a_bit_for_each_pixel_of_a_box(make_segmenter, task: str, decoder: str) -> None:
    segmenter = make_segmenter(task, decoder)
    image = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    boxes = [[20.0 * x, 20.0 * y, 20.0 * x + 20, 20.0 * y + 20] for x in range(30) for y in range(10)]
    found = segmenter.segment(image, boxes, [1] * 300)
    assert len(found) == 300
    held = sum(bits.nbytes for bits in found.windows._bits)
    assert 0 < held <= 300 * 22 * 22 / 8 + 300
    for number in (0, 150, 299):
        outside = found.masks[number].clone()
        x, y = (int(side) for side in boxes[number][:2])
        outside[y : y + 20, x : x + 20] = False
        assert not outside.any()
    assert torch.equal(found.boxes, torch.tensor(boxes))
