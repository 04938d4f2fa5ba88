"""Each operation on patches compared with the whole map; patches cross borders and hold garbage beyond the map."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from dasnet_lightning.functional.patches import (
    Patches,
    convolve,
    cut,
    double,
    paste,
    resize,
    trim,
    unpool_patches,
    whole_maps,
)
from dasnet_lightning.functional.pooling import PoolShape, max_pool_with_switches

GRID = (13, 10)
STARTS = torch.tensor([[-2, -3], [0, 0], [3, 2], [7, 5], [6, -1]])
SIZE = (8, 7)
SOURCE = torch.tensor([1, 0, 1, 0, 1])


def cut_patches(maps: torch.Tensor) -> Patches:
    """Cut patches that hold huge values beyond the map."""
    return Patches(cut(maps, SOURCE, STARTS, SIZE, fill=1e4), STARTS, (maps.shape[2], maps.shape[3]))


def check(patches: Patches, whole: torch.Tensor, at_least: int) -> None:
    assert patches.grid == tuple(whole.shape[2:])
    inside = patches.windows.clip()
    for values, source, (top, left), (y0, x0), (y1, x1) in zip(
        patches.values, SOURCE, patches.start.tolist(), inside.start.tolist(), inside.stop.tolist(), strict=True
    ):
        assert torch.allclose(
            values[:, y0 - top : y1 - top, x0 - left : x1 - left], whole[source, :, y0:y1, x0:x1], atol=1e-5
        )
    assert min(patches.size) >= at_least


OPERATIONS: dict[str, tuple[Callable[[Patches], Patches], int]] = {
    "3x3": (lambda p: convolve(p, WEIGHT, BIAS), 5),
    "1x1": (lambda p: convolve(p, WEIGHT[:, :, :1, :1], BIAS), 7),
    "dilated": (lambda p: convolve(p, WEIGHT, None, dilation=2), 3),
    "two": (lambda p: convolve(convolve(p, WEIGHT, BIAS), WEIGHT, BIAS), 3),
    "double to odd": (lambda p: double(p, WEIGHT, BIAS, (25, 19)), 13),
    "double to even": (lambda p: double(p, WEIGHT, BIAS, (26, 20)), 13),
    "resize twice": (lambda p: resize(p, (26, 20)), 12),
    "resize 75:38": (lambda p: resize(p, (25, 19)), 11),
    "resize down": (lambda p: resize(p, (6, 7)), 2),
    "resize not": (lambda p: resize(p, GRID), 7),
}
torch.manual_seed(0)
WEIGHT, BIAS = torch.randn(3, 3, 3, 3), torch.randn(3)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("grad", [False, True])
def test_operations_equal_the_whole_map(name, grad):
    operation, at_least = OPERATIONS[name]
    maps = torch.randn(2, 3, *GRID)
    with torch.set_grad_enabled(grad):
        whole = operation(whole_maps(maps))
        assert whole.whole
        check(operation(cut_patches(maps)), whole.values, at_least)


@pytest.mark.parametrize("shape", [PoolShape(2, 2, 0), PoolShape(3, 1, 1)])
def test_unpooling_equals_the_whole_map(shape):
    before = torch.randn(2, 3, *((26, 20) if shape.stride == 2 else GRID))
    pooled, switches = max_pool_with_switches(before, *shape)
    size = (before.shape[2], before.shape[3])
    whole = unpool_patches(whole_maps(pooled), switches, size, shape)
    patches = unpool_patches(cut_patches(pooled), cut(switches, SOURCE, STARTS, SIZE), size, shape)
    check(patches, whole.values, 14 if shape.stride == 2 else 5)


def test_what_is_cut_and_pasted_is_the_map_again():
    maps = torch.randn(2, 3, *GRID)
    patches, again = cut_patches(maps), torch.zeros(2, 3, *GRID)
    paste(patches, again, SOURCE)
    covered = torch.zeros(2, *GRID, dtype=torch.bool)
    for source, (top, left) in zip(SOURCE, STARTS.tolist(), strict=True):
        covered[source, max(top, 0) : top + SIZE[0], max(left, 0) : left + SIZE[1]] = True
    assert torch.equal(again, torch.where(covered[:, None], maps, torch.zeros(())))


def test_cutting_repeats_the_border_or_gives_a_value():
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    source, start = torch.tensor([0]), torch.tensor([[-1, 1]])
    assert cut(maps, source, start, (3, 3))[0, 0].tolist() == [[1, 2, 2], [1, 2, 2], [4, 5, 5]]
    assert cut(maps, source, start, (3, 3), fill=9.0)[0, 0].tolist() == [[9, 9, 9], [1, 2, 9], [4, 5, 9]]


def test_trimming_leaves_what_a_smaller_patch_holds():
    patches = cut_patches(torch.randn(2, 3, *GRID))
    small = convolve(patches, WEIGHT, BIAS)
    assert torch.equal(trim(patches, small).values, patches.values[:, :, 1:-1, 1:-1])
    assert torch.equal(trim(patches, small).start, small.start)


def test_whole_maps_are_the_layers_of_torch():
    maps = torch.randn(2, 3, *GRID)
    assert torch.equal(
        convolve(whole_maps(maps), WEIGHT, BIAS, 2).values, F.conv2d(maps, WEIGHT, BIAS, padding=2, dilation=2)
    )
