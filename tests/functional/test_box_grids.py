"""Grids over boxes: sampling against RoIAlign of attended maps, reading against grid_sample, priors."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from dasnet_lightning.functional.attention import attend
from dasnet_lightning.functional.box_grids import (
    NEVER,
    box_windows_of,
    paste_grids,
    prior_channels,
    read_grid,
    sample_attended,
    sample_masks,
)
from dasnet_lightning.types import Pyramid, Regions

SIZE = (48, 64)
BOXES = torch.tensor([[8.0, 8, 40, 40], [3.3, 5.1, 22.9, 30.2], [30.0, 2, 64, 48], [17.0, 17, 20, 19.5]])


def regions(count: int = 4, images: int = 2) -> Regions:
    """One region for each box, alternating between the images."""
    index = torch.arange(count)
    return Regions(BOXES[:count], index, index % images, torch.ones_like(index))


@pytest.mark.parametrize("rounding", ["cover", "inside"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("cells", [4, 16])
def test_sampling_is_roi_align_of_the_attended_level(cells, images, rounding):
    torch.manual_seed(0)
    level, chosen = torch.randn(images, 5, 12, 16), regions(images=images)
    attended = attend(Pyramid((level,), (4,), SIZE), chosen, rounding).levels[0]
    windows = box_windows_of(BOXES, 0.1)
    rois = torch.cat([torch.arange(4.0)[:, None], windows], dim=1)
    expected = roi_align(attended, rois, cells, spatial_scale=0.25, sampling_ratio=2, aligned=True)
    found = sample_attended(level, chosen, SIZE, cells, 0.1, rounding)
    # RoIAlign also reads up to one cell beyond the map, where the window leaves the image
    inside = torch.tensor([0, 1, 3])
    assert torch.allclose(found[inside], expected[inside], atol=1e-5)


def test_what_lies_outside_the_box_is_never_read():
    level, chosen = torch.randn(1, 3, 12, 16), regions(1, 1)
    before = sample_attended(level, chosen, SIZE, 8, 0.1)
    changed = level + 7
    changed[:, :, 2:10, 2:10] = level[:, :, 2:10, 2:10]
    assert torch.equal(sample_attended(changed, chosen, SIZE, 8, 0.1), before)
    assert before.any()


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("images", [1, 3])
def test_any_number_of_boxes_can_be_sampled(count, images):
    sampled = sample_attended(torch.randn(images, 3, 12, 16), regions(count, images), SIZE, 8, 0.1)
    assert sampled.shape == (count, 3, 8, 8)


def test_a_window_beyond_the_image_sees_nothing_there():
    box = torch.tensor([[0.0, 0, 20, 20]])
    one = Regions(box, torch.tensor([0]), torch.tensor([0]), torch.tensor([1]))
    sampled = sample_attended(torch.ones(1, 1, 12, 16), one, SIZE, 12, 0.1)[0, 0]
    assert torch.equal(sampled[0], torch.zeros(12))  # the first of 12 rows is the margin
    assert torch.equal(sampled[:, 0], torch.zeros(12))
    assert torch.allclose(sampled[1:10, 1:10], torch.ones(9, 9))


def test_reading_is_bilinear_at_the_centers_of_the_pixels():
    torch.manual_seed(0)
    scores, window = torch.randn(8, 8), torch.tensor([3.5, 2.0, 27.5, 18.0])
    found = read_grid(scores, window, (4, 2, 27, 18))
    x = (torch.arange(4, 27) + 0.5 - 3.5) / 24 * 2 - 1
    y = (torch.arange(2, 18) + 0.5 - 2.0) / 16 * 2 - 1
    grid = torch.stack([x.expand(16, 23), y[:, None].expand(16, 23)], dim=2)[None]
    expected = F.grid_sample(scores[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert read_grid(scores, window, (5, 5, 5, 9)).shape == (4, 0)


def test_masks_survive_sampling_and_reading():
    mask = torch.zeros(1, *SIZE)
    mask[0, 12:30, 14:36] = 1
    window = box_windows_of(torch.tensor([[14.0, 12, 36, 30]]), 0.1)
    sampled = sample_masks(mask, window, 64)
    again = read_grid(sampled[0] * 2 - 1, window[0], (0, 0, SIZE[1], SIZE[0])) > 0
    assert torch.equal(again, mask[0] > 0)


def test_pasted_regions_are_the_best_of_their_boxes_and_end_at_the_windows():
    boxes = torch.tensor([[4.0, 4, 20, 20], [12.0, 12, 30, 30], [40.0, 4, 60, 20]])
    grouped = Regions(boxes, torch.tensor([0, 0, 1]), torch.tensor([0, 0]), torch.tensor([1, 2]))
    scores = torch.tensor([1.0, 2, 3])[:, None, None].expand(3, 8, 8)
    pasted = paste_grids(scores, boxes, grouped, SIZE)
    assert pasted.shape == (2, *SIZE)
    assert pasted[0, 5, 5] == 1
    assert pasted[0, 15, 15] == 2
    assert pasted[0, 10, 50] == NEVER
    assert pasted[1, 10, 50] == 3
    assert int((pasted[1] == 3).sum()) == 20 * 16


def test_priors_tell_the_place_in_the_box():
    x, y, inside = prior_channels(12, 0.1)
    assert torch.allclose(x[0], y[:, 0])
    assert x[0, 0] == pytest.approx(-1.1)
    assert (inside.sum(), inside[0].sum(), inside[1, 1]) == (100, 0, 1)


def test_reading_a_grid_is_exact_under_autocast():
    scores, window = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 1.0, 20.0, 30.0])
    plain = read_grid(scores, window, (0, 0, 20, 30))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(read_grid(scores, window, (0, 0, 20, 30)), plain)
