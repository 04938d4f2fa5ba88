import pytest
import torch

from dasnet_lightning.functional.guided_filter import guided_filter
from dasnet_lightning.functional.mask_quality import estimate_iou, soft_dice_confidence


def reference(values, guide, radius, eps):
    """The formula, window by window."""
    height, width = values.shape
    count, slope_sum, offset_sum = torch.zeros(height, width), torch.zeros_like(guide), torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            rows, columns = (slice(max(0, p - radius), p + radius + 1) for p in (y, x))
            pixels, p = guide[:, rows, columns].flatten(1), values[rows, columns].flatten()
            centered = pixels - pixels.mean(dim=1, keepdim=True)
            sigma = centered @ centered.T / len(p)
            slope = torch.linalg.solve(sigma + eps * torch.eye(3), (centered * (p - p.mean())).mean(dim=1))
            count[rows, columns] += 1
            slope_sum[:, rows, columns] += slope[:, None, None]
            offset_sum[rows, columns] += p.mean() - slope @ pixels.mean(dim=1)
    return ((slope_sum / count) * guide).sum(dim=0) + offset_sum / count


@pytest.mark.parametrize("radius", [1, 3])
def test_it_is_the_formula(radius):
    torch.manual_seed(0)
    values, guide = torch.rand(9, 7), torch.rand(3, 9, 7)
    assert torch.allclose(guided_filter(values, guide, radius, 0.01), reference(values, guide, radius, 0.01), atol=1e-4)


def test_a_soft_edge_moves_to_the_edge_of_the_image():
    guide = torch.zeros(3, 20, 20)
    guide[:, :, 12:] = 1
    blurred = ((torch.arange(20) - 5.5) / 8).clamp(0, 1).expand(20, 20)  # 0.5 at column 9.5
    sharp = guided_filter(blurred, guide, 4, 1e-4)
    assert (sharp[10] > 0.5).tolist() == [column >= 12 for column in range(20)]


def test_the_fast_variant_keeps_the_edges_of_the_full_image():
    guide = torch.zeros(3, 40, 40)
    guide[:, :, 23:] = 1
    blurred = ((torch.arange(40) - 15.5) / 8).clamp(0, 1).expand(40, 40)  # 0.5 at column 19.5
    sharp = guided_filter(blurred, guide, 2, 1e-4, subsample=3)
    assert (sharp[20] > 0.5).tolist() == [column >= 23 for column in range(40)]
    values, noise = torch.rand(9, 7), torch.rand(3, 9, 7)
    assert torch.equal(guided_filter(values, noise, 2, 0.01, 1), guided_filter(values, noise, 2, 0.01))


def test_a_flat_guide_is_a_mean_and_nothing_stays_nothing():
    values = torch.rand(11, 11)
    flat = guided_filter(values, torch.full((3, 11, 11), 0.5), 5, 1e-3)
    assert flat[5, 5] == pytest.approx(float(_means(_means(values))[5, 5]), abs=1e-5)
    assert guided_filter(torch.zeros(0, 4), torch.zeros(3, 0, 4), 2, 1e-3).shape == (0, 4)


def _means(values, radius=5):
    height, width = values.shape
    out = torch.zeros_like(values)
    for y in range(height):
        for x in range(width):
            out[y, x] = values[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].mean()
    return out


def test_soft_dice_confidence_is_one_for_a_certain_mask_and_zero_for_none():
    probs = torch.stack([torch.eye(4), torch.full((4, 4), 0.2), torch.full((4, 4), 0.75)])
    assert soft_dice_confidence(probs).tolist() == pytest.approx([1.0, 0.0, 2 * 0.75 / 1.75])
    dice = 2 * 0.75 / 1.75
    assert estimate_iou(probs).tolist() == pytest.approx([1.0, 0.0, dice / (2 - dice)])
    assert estimate_iou(torch.zeros(0, 4, 4)).shape == (0,)
