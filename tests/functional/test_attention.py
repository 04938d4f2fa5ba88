import math

import pytest
import torch

from dasnet_lightning.functional.attention import attend, box_attention, box_scores
from dasnet_lightning.types import Pyramid, Regions

IMAGE = (96, 128)


def reference(boxes, region_index, num_regions, feature_size, rounding):
    """Compute eq. (1) cell by cell."""
    height, width = feature_size
    keep = torch.zeros(num_regions, height, width)
    for (x0, y0, x1, y1), region in zip(boxes.double().tolist(), region_index.tolist(), strict=True):
        left, right = x0 * width / IMAGE[1], x1 * width / IMAGE[1]
        top, bottom = y0 * height / IMAGE[0], y1 * height / IMAGE[0]
        for y in range(height):
            for x in range(width):
                if rounding == "inside":
                    inside = left <= x <= right and top <= y <= bottom
                else:
                    first_x = min(max(math.floor(left), 0), width - 1)
                    first_y = min(max(math.floor(top), 0), height - 1)
                    last_x = max(min(math.ceil(right), width), first_x + 1)
                    last_y = max(min(math.ceil(bottom), height), first_y + 1)
                    inside = first_x <= x < last_x and first_y <= y < last_y
                if inside:
                    keep[region, y, x] = 1
    return keep


def random_boxes(count, generator, snap):
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([IMAGE[1], IMAGE[0]])
    if snap:
        corners = (corners / 4).round() * 4
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


@pytest.mark.parametrize("rounding", ["cover", "inside"])
@pytest.mark.parametrize("feature_size", [(24, 32), (12, 16), (5, 7), (1, 1)])
@pytest.mark.parametrize("snap", [True, False])
def test_equals_the_formula_forward_and_backward(rounding, feature_size, snap):
    generator = torch.Generator().manual_seed(feature_size[0] + snap)
    boxes = random_boxes(40, generator, snap)
    region_index = torch.randint(0, 6, (40,), generator=generator)
    expected = reference(boxes, region_index, 7, feature_size, rounding)
    assert torch.equal(box_attention(boxes, region_index, 7, IMAGE, feature_size, rounding), expected)

    image_index = torch.randint(0, 2, (7,), generator=generator)
    level = torch.randn(2, 3, *feature_size, generator=generator, requires_grad=True)
    regions = Regions(boxes, region_index, image_index, torch.ones(7, dtype=torch.int64))
    attended = attend(Pyramid((level,), (4,), IMAGE), regions, rounding).levels[0]
    weights = torch.randn(attended.shape, generator=generator)
    (attended * weights).sum().backward()

    gradient = torch.zeros_like(level)
    for region, image in enumerate(image_index.tolist()):
        assert torch.equal(attended[region], level[image].detach() * expected[region])
        gradient[image] += weights[region] * expected[region]
    assert torch.allclose(level.grad, gradient, atol=1e-6)


@pytest.mark.parametrize("box", [[5.0, 5, 5, 5], [128.0, 96, 128, 96], [127.9, 95.9, 128, 96], [0, 0, 0.01, 0.01]])
def test_cover_keeps_at_least_one_cell(box):
    for size in [(24, 32), (3, 4), (1, 1)]:
        keep = box_attention(torch.tensor([box]), torch.tensor([0]), 1, IMAGE, size)
        assert keep.sum() == 1


def test_inside_may_keep_nothing_at_coarse_levels():
    box = torch.tensor([[33.0, 25, 60, 45]])
    assert box_attention(box, torch.tensor([0]), 1, IMAGE, (3, 4), "inside").sum() == 0


def test_scores_of_one_are_the_attention_and_the_best_score_wins():
    generator = torch.Generator().manual_seed(3)
    boxes, index = random_boxes(30, generator, False), torch.randint(0, 5, (30,), generator=generator)
    scores = torch.rand(30, generator=generator)
    attention = box_attention(boxes, index, 6, IMAGE, (24, 32))
    assert torch.equal(box_scores(boxes, torch.ones(30), index, 6, IMAGE, (24, 32)), attention)
    best = torch.zeros(6, 24, 32)
    for box, region, score in zip(boxes, index.tolist(), scores, strict=True):
        alone = box_attention(box[None], torch.zeros(1, dtype=torch.int64), 1, IMAGE, (24, 32))[0]
        best[region] = torch.maximum(best[region], alone * score)
    assert torch.equal(box_scores(boxes, scores, index, 6, IMAGE, (24, 32)), best)


def test_no_boxes_keep_nothing():
    keep = box_attention(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 2, IMAGE, (6, 8))
    assert keep.shape == (2, 6, 8)
    assert keep.sum() == 0


def test_soft_weights_scale_the_cells_inside_the_boxes_and_ones_change_nothing():
    torch.manual_seed(0)
    pyramid = Pyramid((torch.rand(2, 3, 8, 8), torch.rand(2, 4, 3, 3)), (4, 8), (32, 32))
    boxes = torch.tensor([[4.0, 4, 20, 20], [0, 0, 9, 9]])
    regions = Regions(boxes, torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1, 2]))
    plain = attend(pyramid, regions)
    ones = attend(pyramid, regions, weights=torch.ones(2, 16, 16))
    assert all(torch.equal(one, other) for one, other in zip(plain.levels, ones.levels, strict=True))
    weights = torch.rand(2, 8, 8)
    soft = attend(pyramid, regions, weights=weights)
    assert torch.allclose(soft.levels[0], plain.levels[0] * weights[:, None])
    assert soft.levels[1].abs().sum() < plain.levels[1].abs().sum()
