import torch

from dasnet_lightning.models.semantic import merge_regions


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
