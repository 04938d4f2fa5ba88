import math

import pytest
import torch
from torchvision.ops import box_iou

from dasnet_lightning.functional.boxes import (
    clip_boxes,
    covered_fraction,
    decode_boxes,
    encode_boxes,
    restore_boxes,
    scale_boxes,
)


def random_boxes(number: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * 200
    return torch.cat([corner, corner + 1 + torch.rand(number, 2, generator=generator) * 100], dim=1)


def test_offsets_computed_by_hand():
    anchor = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # center (20, 40), size 20 x 40
    box = torch.tensor([[14.0, 34.0, 54.0, 54.0]])  # center (34, 44), size 40 x 20
    expected = torch.tensor([[14 / 20 / 0.1, 4 / 40 / 0.1, math.log(2) / 0.2, -math.log(2) / 0.2]])
    torch.testing.assert_close(encode_boxes(box, anchor), expected)


def test_decode_is_the_inverse_of_encode():
    boxes, anchors = random_boxes(50, 0), random_boxes(50, 1)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes, rtol=1e-4, atol=1e-3)


def test_degenerate_boxes_and_wild_offsets_stay_finite():
    anchors = random_boxes(1, 0)
    assert encode_boxes(torch.full((1, 4), 7.0), anchors).isfinite().all()
    assert decode_boxes(torch.full((1, 4), 1e6), anchors).isfinite().all()


def test_clip_keeps_boxes_inside():
    boxes = torch.tensor([[-5.0, -5.0, 500.0, 50.0], [300.0, 10.0, 400.0, 20.0]])
    assert clip_boxes(boxes, (40, 200)).tolist() == [[0, 0, 200, 40], [200, 10, 200, 20]]


def test_covered_fraction_counts_the_boxes_own_area():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [3.0, 3.0, 3.0, 9.0]])
    regions = torch.tensor([[0.0, 0.0, 10.0, 100.0]])
    torch.testing.assert_close(covered_fraction(boxes, regions), torch.tensor([[1.0, 0.5, 0.0]]))


def test_an_iou_above_one_half_implies_more_than_half_covered():
    boxes, regions = random_boxes(300, 2), random_boxes(300, 3)
    overlap = box_iou(regions, boxes) > 0.5
    assert overlap.any()
    assert (covered_fraction(boxes, regions)[overlap] > 0.5).all()


@pytest.mark.parametrize("size", [(375, 500), (57, 43), (1080, 1920)])
def test_whole_pixels_come_back_from_another_size_and_fractions_stay(size):
    start = torch.arange(0, min(size) - 1, dtype=torch.float32)
    whole = torch.stack([start, start, start + 1, start + 1], dim=1)
    there = scale_boxes(whole, size, (320, 320))
    assert not torch.equal(scale_boxes(there, (320, 320), size), whole)  # why restore_boxes exists
    assert torch.equal(restore_boxes(there, (320, 320), size), whole)
    fractions = whole + torch.tensor([0.2, 0.3, 0.4, 0.45])
    back = restore_boxes(scale_boxes(fractions, size, (320, 320)), (320, 320), size)
    assert torch.allclose(back, fractions, atol=1e-3)
