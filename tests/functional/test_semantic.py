import torch
from torch import nn
from torch.nn import functional as F

from dasnet_lightning.functional.losses import graph_zero, mean_over_ranks, semantic_loss
from dasnet_lightning.models.semantic import merge_regions


def test_loss_is_the_mean_over_counted_pixels_and_zero_without_any():
    logits = torch.randn(3, 2, 5, 6, requires_grad=True)
    labels = torch.randint(0, 2, (3, 5, 6))
    labels[torch.rand(3, 5, 6) < 0.4] = 255
    mean = mean_over_ranks({"mask": semantic_loss(logits, labels)})["mask"]
    assert torch.allclose(mean, F.cross_entropy(logits, labels, ignore_index=255))
    nothing = mean_over_ranks({"mask": semantic_loss(logits, torch.full((3, 5, 6), 255))})["mask"]
    nothing.backward()
    assert nothing == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_graph_zero_gives_every_trainable_parameter_a_gradient():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).requires_grad_(False))
    graph_zero(module.parameters()).backward()
    assert torch.equal(module[0].weight.grad, torch.zeros(3, 2))
    assert module[1].weight.grad is None


def test_the_best_region_wins_a_pixel():
    foreground = torch.tensor([[[0.9, 0.6, 0.3, 0.9]], [[0.8, 0.7, 0.4, 0.1]]])
    weights = torch.tensor([[[1.0, 1, 1, 0]], [[1, 1, 1, 1]]])
    merged = merge_regions(foreground, weights, torch.tensor([4, 7]), foreground_threshold=0.35)
    assert merged.tolist() == [[4, 7, 7, 0]]


def test_the_better_score_wins_where_two_classes_claim_an_object():
    foreground = torch.tensor([[[0.90, 0.3]], [[0.91, 0.9]]])
    weights = torch.tensor([0.8, 0.4])[:, None, None].expand(2, 1, 2)
    merged = merge_regions(foreground, weights, torch.tensor([4, 7]), foreground_threshold=0.5)
    assert merged.tolist() == [[4, 7]]


def test_no_region_is_background():
    empty = torch.zeros(0, 2, 3)
    merged = merge_regions(empty, empty, torch.zeros(0, dtype=torch.int64), 0.5)
    assert torch.equal(merged, torch.zeros(2, 3, dtype=torch.int64))
