"""`assemble` compared with a loop over the definition, and `read_boxes` with `assemble`."""

import math

import pytest
import torch
from torch.nn import functional as F

from dasnet_lightning.functional.boxes import pixel_windows
from dasnet_lightning.functional.position_sensitive import (
    assemble,
    inside_logits,
    instance_scores,
    pixel_grid,
    read_boxes,
)

SIZE = (12, 15)
BOXES = {
    "whole pixels": [2.0, 3, 9, 10],
    "fractional": [1.3, 2.6, 11.8, 9.1],
    "one pixel wide": [4.0, 1, 5, 11],
    "narrower than a pixel": [4.2, 3.1, 4.7, 3.3],
    "less wide than cells": [3.0, 3, 6, 7],
    "touching the border": [0.0, 0, 15, 12],
    "crossing the border": [-3.5, -2, 4.5, 20],
    "far larger than the image": [-40.0, -40, 60, 60],
    "outside": [20.0, 3, 25, 8],
    "without extent": [5.0, 5, 5, 5],
}


def loop(maps: torch.Tensor, box: list[float], k: int) -> torch.Tensor:
    """Assemble pixel by pixel, as design.md section 3 defines it."""
    height, width = maps.shape[1:]
    x0, y0, x1, y1 = box
    left, right = max(0, math.floor(x0)), min(width, math.ceil(x1))
    top, bottom = max(0, math.floor(y0)), min(height, math.ceil(y1))
    rows = []
    for y in range(top, bottom):
        for x in range(left, right):
            column = min(max(math.floor(k * (x + 0.5 - x0) / (x1 - x0)), 0), k - 1)
            row = min(max(math.floor(k * (y + 0.5 - y0) / (y1 - y0)), 0), k - 1)
            channel = 2 * (row * k + column)
            rows.append(torch.stack([maps[channel, y, x], maps[channel + 1, y, x]]))
    shape = (2, max(0, bottom - top), max(0, right - left))
    return torch.stack(rows, dim=1).reshape(shape) if rows else maps.new_zeros(shape)


def random_boxes(count: int, seed: int) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 18 - 4
    extent = torch.rand(count, 2, generator=generator) * 14 + 0.2
    return torch.cat([low, low + extent], dim=1).tolist()


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("name", BOXES)
def test_assembling_is_the_definition_forward_and_backward(name, k):
    torch.manual_seed(0)
    maps = torch.randn(2 * k * k, *SIZE, requires_grad=True)
    for box in [BOXES[name], *random_boxes(8, seed=k)]:
        ours, expected = assemble(maps, torch.tensor(box), k), loop(maps, box, k)
        assert torch.equal(ours, expected)
        weight = torch.randn(ours.shape)
        gradients = [torch.autograd.grad((out * weight).sum() + 0 * maps.sum(), maps)[0] for out in (ours, expected)]
        assert torch.equal(*gradients)


@pytest.mark.parametrize("cells", [SIZE, (3, 5), (6, 4)])
def test_reading_many_boxes_equals_assembling_each(cells):
    """Maps that are coarser than the image are read as if they were interpolated first."""
    torch.manual_seed(1)
    k, boxes = 3, torch.tensor([*BOXES.values(), *random_boxes(30, seed=2)])
    maps = torch.randn(4, 2 * k * k, *cells, requires_grad=True)
    region_index = torch.arange(len(boxes)) % 4
    grid = pixel_grid(boxes, SIZE)
    scores = read_boxes(maps, boxes, region_index, grid, SIZE, k)
    full = F.interpolate(maps, size=SIZE, mode="bilinear", align_corners=False)
    total_ours, total = maps.sum() * 0, maps.sum() * 0
    for index, (box, region) in enumerate(zip(boxes, region_index.tolist(), strict=True)):
        expected = assemble(full[region], box, k)
        height, width = expected.shape[1:]
        assert grid.valid[index].sum() == height * width
        ours = scores[index, :, :height, :width]
        assert torch.allclose(ours, expected, atol=1e-5)
        weight = torch.randn(expected.shape)
        total_ours, total = total_ours + (ours * weight).sum(), total + (expected * weight).sum()
    ours, expected = (torch.autograd.grad(value, maps)[0] for value in (total_ours, total))
    assert torch.allclose(ours, expected, atol=1e-4)


def test_layout_of_the_maps():
    """Map 2 * (row * k + column) is the inside map of a cell, the next one its outside map."""
    k = 3
    maps = torch.arange(2.0 * k * k)[:, None, None].expand(-1, 9, 9)
    scores = assemble(maps, torch.tensor([0.0, 0, 9, 9]), k)
    assert scores[0, 0, 0] == 0
    assert scores[1, 0, 0] == 1
    assert scores[0, 0, 8] == 2 * 2  # first row, last column
    assert scores[0, 8, 0] == 2 * 6  # last row, first column
    assert scores[1, 8, 8] == 17


def test_windows_hold_every_pixel_that_a_box_touches():
    windows = pixel_windows(torch.tensor([[1.2, 3.9, 4.0, 5.1], [-3, -3, 99, 99]]), SIZE)
    assert windows.tolist() == [[1, 3, 4, 6], [0, 0, 15, 12]]


def test_a_sparse_grid_reads_every_pixel_equally_often():
    boxes = torch.tensor([[0.0, 0, 15, 12], [2, 2, 5, 5]])
    seen = torch.zeros(15)
    for draw in torch.linspace(0, 1, 301)[:-1]:
        grid = pixel_grid(boxes, SIZE, max_lines=4, offset=draw.expand(2, 2))
        assert grid.columns.shape == (2, 4)
        assert grid.column_valid.tolist() == [[True] * 4, [True] * 3 + [False]]
        assert grid.columns[1, :3].tolist() == [2, 3, 4]  # a small box is read whole
        assert (grid.columns[0].diff() > 0).all()
        seen[grid.columns[0]] += 1
    assert seen.min() > 0.8 * seen.mean()
    assert seen.max() < 1.2 * seen.mean()


def test_instance_scores_are_means_over_the_pixels_of_the_box_alone():
    scores = torch.tensor([[[[1.0, 5.0]], [[3.0, -1.0]]], [[[2.0, 9.0]], [[0.0, 9.0]]], [[[7.0, 7.0]], [[7.0, 7.0]]]])
    valid = torch.tensor([[[True, True]], [[True, False]], [[False, False]]])
    assert instance_scores(scores, valid).tolist() == [4.0, 2.0, 0.0]
    assert inside_logits(scores)[0].tolist() == [[-2.0, 6.0]]


def test_no_boxes_and_no_regions():
    nothing = torch.zeros(0, 4)
    grid = pixel_grid(nothing, SIZE, 8, torch.zeros(0, 2))
    index = torch.zeros(0, dtype=torch.int64)
    assert read_boxes(torch.zeros(2, 18, 4, 5), nothing, index, grid, SIZE, 3).shape[0] == 0
    assert read_boxes(torch.zeros(0, 18, 4, 5), nothing, index, grid, SIZE, 3).shape[0] == 0
