"""Lazy scoring compared with `read_boxes` and `assemble` on the maps of the whole score layer."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dasnet_lightning.functional import lazy_scoring
from dasnet_lightning.functional.boxes import pixel_windows
from dasnet_lightning.functional.lazy_scoring import score_boxes
from dasnet_lightning.functional.patches import Patches, whole_maps
from dasnet_lightning.functional.position_sensitive import assemble, pixel_grid, read_boxes

CHANNELS = 5
MAPS = (24, 30)


def random_boxes(count: int, size: tuple[int, int]) -> Tensor:
    """Return boxes of all sizes: some cross the border, one pixel, corners, the whole image, no extent, and one outside."""
    span = torch.tensor([size[1], size[0]] * 2)
    low, extent = torch.rand(count, 2) * 1.1 - 0.1, torch.rand(count, 2) ** 2
    boxes = torch.cat([low, low + extent], dim=1) * span
    height, width = size
    special = [[3, 3, 4, 4], [0, 0, 5, 5], [width - 3.5, height - 2, width, height], [0, 0, width, height]]
    special += [[2.2, 2.2, 2.2, 2.2], [-40, -40, 2 * width, 2 * height], [width + 5, 2, width + 9, 6]]
    return torch.cat([boxes, torch.tensor(special)])


def setting(k: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    weight, bias = torch.randn(2 * k * k, CHANNELS, 3, 3) / 3, torch.randn(2 * k * k)
    return torch.randn(3, CHANNELS, *MAPS), weight, bias


@pytest.mark.parametrize("at_once", [2**23, 1000])
@pytest.mark.parametrize("max_lines", [None, 6])
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("size", [MAPS, (96, 120), (50, 75), (17, 30), (11, 9)])
def test_equals_reading_the_maps(size, k, max_lines, at_once, monkeypatch):
    monkeypatch.setattr(lazy_scoring, "FEATURES_AT_ONCE", at_once)
    features, weight, bias = setting(k)
    boxes = random_boxes(30, size)
    rows = torch.randint(3, (len(boxes),))
    grid = pixel_grid(boxes, size, max_lines)
    expected = read_boxes(F.conv2d(features, weight, bias, padding=1), boxes, rows, grid, size, k)
    scores = score_boxes(whole_maps(features), rows, boxes, grid, size, weight, bias, k)
    assert scores.shape == expected.shape
    difference = (scores - expected).abs().amax(dim=1)[grid.valid]
    assert difference.max() <= 1e-5


def test_equals_assembling():
    features, weight, bias = setting(7)
    maps = F.conv2d(features, weight, bias, padding=1)
    boxes = random_boxes(20, MAPS)
    rows = torch.randint(3, (len(boxes),))
    scores = score_boxes(whole_maps(features), rows, boxes, pixel_grid(boxes, MAPS), MAPS, weight, bias, 7)
    for number, (x0, y0, x1, y1) in enumerate(pixel_windows(boxes, MAPS).tolist()):
        expected = assemble(maps[rows[number]], boxes[number], 7)
        got = scores[number, :, : max(0, y1 - y0), : max(0, x1 - x0)]
        assert got.shape == expected.shape
        assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("size", [MAPS, (96, 120)])
def test_patches_need_the_cells_that_are_read_and_one_around(size):
    """Values of a patch beyond its map are not read; the score layer reads zeros there."""
    features, weight, bias = setting(3)
    fine = size[0] // MAPS[0]
    boxes = torch.tensor([[0.0, 0, 6, 8], [25, 14, 30, 24], [10, 10, 14, 15]]) * fine
    start = torch.tensor([[-2, -2], [12, 22], [6, 6]])  # 13 rows and 12 columns of each
    values = torch.full((3, CHANNELS, 13, 12), 1e3)
    for number, (top, left) in enumerate(start.tolist()):
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + 13, MAPS[0]), min(left + 12, MAPS[1])
        values[number, :, y0 - top : y1 - top, x0 - left : x1 - left] = features[number, :, y0:y1, x0:x1]
    grid, rows = pixel_grid(boxes, size), torch.arange(3)
    expected = score_boxes(whole_maps(features), rows, boxes, grid, size, weight, bias, 3)
    scores = score_boxes(Patches(values, start, MAPS), rows, boxes, grid, size, weight, bias, 3)
    assert (scores - expected).abs().amax(dim=1)[grid.valid].max() <= 1e-5


def test_gradients_are_those_of_the_maps():
    features, weight, bias = (tensor.double().requires_grad_() for tensor in setting(3))
    boxes = random_boxes(8, (50, 75)).double()
    rows, grid = torch.randint(3, (len(boxes),)), pixel_grid(boxes, (50, 75))
    factor = torch.randn(len(boxes), 2, *grid.valid.shape[1:], dtype=torch.double) * grid.valid[:, None]
    maps = F.conv2d(features, weight, bias, padding=1)
    expected = read_boxes(maps, boxes, rows, grid, (50, 75), 3)
    scores = score_boxes(whole_maps(features), rows, boxes, grid, (50, 75), weight, bias, 3)
    wanted = torch.autograd.grad((expected * factor).sum(), [features, weight, bias])
    given = torch.autograd.grad((scores * factor).sum(), [features, weight, bias])
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(given, wanted, strict=True))


@pytest.mark.parametrize("size", [MAPS, (50, 75)])
def test_no_boxes_have_no_scores(size):
    features, weight, bias = setting(3)
    boxes, rows = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    grid = pixel_grid(boxes, size)
    assert score_boxes(whole_maps(features), rows, boxes, grid, size, weight, bias, 3).shape[:2] == (0, 2)


@pytest.mark.parametrize("side", [0.2, 0.4, 1.0])
def test_operations_are_a_fortieth_of_the_score_layers(side):
    """For one box in an image of 320 pixels; smaller boxes need fewer operations."""
    features, weight, bias = torch.zeros(1, 64, 320, 320), torch.zeros(98, 64, 3, 3), torch.zeros(98)
    boxes, rows, size = torch.tensor([[0.0, 0, side * 320, side * 320]]), torch.zeros(1, dtype=torch.int64), (320, 320)
    with FlopCounterMode(display=False) as lazy, torch.inference_mode():
        score_boxes(whole_maps(features), rows, boxes, pixel_grid(boxes, size), size, weight, bias, 7)
    with FlopCounterMode(display=False) as whole:
        F.conv2d(features.to("meta"), weight.to("meta"), bias.to("meta"), padding=1)
    assert lazy.get_total_flops() * 40 / side <= whole.get_total_flops()
