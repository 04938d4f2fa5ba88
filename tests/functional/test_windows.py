"""The window rules compared with the cells that each layer really reads."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.functional.pooling import PoolShape
from dasnet_lightning.functional.windows import (
    Windows,
    after_resizing,
    box_windows,
    doubling_input_window,
    merge_windows,
    resize_input_window,
    size_buckets,
    unpooling_input_window,
)


def windows(*corners: tuple[int, int, int, int], grid: tuple[int, int] = (40, 40)) -> Windows:
    """Return one window from y0, x0, y1, x1."""
    all_ = torch.tensor(corners, dtype=torch.int64).reshape(-1, 4)
    return Windows(all_[:, :2], all_[:, 2:], grid)


def readers(linear: Tensor) -> list[tuple[int, int]]:
    """Return the first and last input cell that each output of a matrix [out in] reads."""
    return [(int(row.nonzero().min()), int(row.nonzero().max())) for row in linear]


@pytest.mark.parametrize(("before", "after"), [(10, 20), (10, 40), (38, 75), (7, 20), (20, 10), (9, 5), (5, 5)])
def test_resizing_reads_what_interpolate_reads(before, after):
    unit = torch.eye(before)[:, None, :, None].expand(-1, -1, -1, 3)
    matrix = F.interpolate(unit, size=(after, 3), mode="bilinear", align_corners=False)[:, 0, :, 0].T
    reads = readers(matrix)
    for start in range(after):
        for stop in range(start + 1, after + 1):
            window = windows((start, 0, stop, 1), grid=(after, 3))
            need = resize_input_window(window, (before, 3))
            assert need.start[0, 0] <= min(low for low, _ in reads[start:stop])
            assert need.stop[0, 0] > max(high for _, high in reads[start:stop])
            spare = 0 if after % before == 0 else 1 + -(-before // after)
            assert (
                need.stop[0, 0] - need.start[0, 0] <= max(h for _, h in reads[start:stop]) - reads[start][0] + 3 + spare
            )
            assert after_resizing(need, window.grid).contains(window)


def test_doubling_reads_what_a_transposed_convolution_reads():
    unit = torch.eye(9)[:, None, :, None]
    matrix = F.conv_transpose2d(unit, torch.ones(1, 1, 3, 3), stride=2, padding=1)[:, 0, :, 0].T
    reads = readers(matrix)
    for start in range(17):
        for stop in range(start + 1, 18):
            need = doubling_input_window(windows((start, 0, stop, 1), grid=(17, 1)), (9, 1))
            last = max(high for _, high in reads[start:stop])
            assert need.start[0, 0] == reads[start][0]
            assert last < need.stop[0, 0] <= last + 2


@pytest.mark.parametrize("shape", [PoolShape(2, 2, 0), PoolShape(3, 1, 1), PoolShape(3, 2, 1)])
def test_unpooling_reads_the_windows_that_hold_a_cell(shape):
    kernel, stride, padding = shape
    corners = {i: i * stride - padding for i in range(-3, 30)}
    holds = {cell: [i for i, low in corners.items() if low <= cell < low + kernel] for cell in range(20)}
    for start in range(20):
        for stop in range(start + 1, 21):
            need = unpooling_input_window(windows((start, 0, stop, 1), grid=(20, 1)), (20, 1), shape)
            assert (need.start[0, 0], need.stop[0, 0]) == (min(holds[start]), max(holds[stop - 1]) + 1)


def test_boxes_have_at_least_one_pixel_inside_of_the_image():
    boxes = torch.tensor([[1.5, 2.5, 3.2, 4], [5, 5, 5, 5], [-9, -9, -2, -2], [50, 60, 70, 80], [-5, 0, 99, 9]])
    found = box_windows(boxes, (10, 20))
    assert torch.cat([found.start, found.stop], dim=1).tolist() == [
        [2, 1, 4, 4], [5, 5, 6, 6], [0, 0, 1, 1], [9, 19, 10, 20], [0, 0, 9, 20],
    ]  # fmt: skip


def test_windows_of_a_group_are_merged_where_that_saves_cells():
    given = windows((0, 0, 4, 4), (20, 20, 24, 24), (1, 1, 5, 5), (0, 0, 4, 4), (3, 20, 7, 24), (0, 4, 4, 8))
    merged, holder = merge_windows(given, torch.tensor([0, 0, 0, 1, 1, 0]))
    assert torch.cat([merged.start, merged.stop], dim=1)[holder].tolist() == [
        [0, 0, 5, 8], [20, 20, 24, 24], [0, 0, 5, 8], [0, 0, 4, 4], [3, 20, 7, 24], [0, 0, 5, 8],
    ]  # fmt: skip
    nothing, holder = merge_windows(windows(), torch.zeros(0, dtype=torch.int64))
    assert (len(nothing), len(holder)) == (0, 0)


def test_buckets_hold_each_window_once_and_waste_little():
    torch.manual_seed(0)
    sizes = torch.randint(1, 30, (200, 2))
    given = Windows(torch.zeros_like(sizes), sizes, (40, 40))
    buckets = size_buckets(given, 1.3, 2000)
    assert sorted(number for members, _ in buckets for number in members) == list(range(200))
    assert len(buckets) < 100
    for members, (height, width) in buckets:
        assert len(members) == 1 or len(members) * height * width <= 2000
        for number in members:
            assert int(sizes[number, 0]) <= height
            assert int(sizes[number, 1]) <= width
            assert height * width <= 1.3 * int(given.areas[number])
