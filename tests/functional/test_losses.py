import torch
from torch import nn
from torch.nn import functional as F

from dasnet_lightning.functional.instance_targets import SamplingOptions, draw_samples
from dasnet_lightning.functional.losses import graph_zero, instance_losses, mean_over_ranks, semantic_loss
from toy import make_target

BOXES = [[2.0, 2, 14, 14], [16, 16, 30, 28]]
SIZE = (32, 32)


def samples_of(targets, drawn, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(targets))]
    indices = [torch.tensor(objects, dtype=torch.int64) for objects in drawn]
    return draw_samples(targets, indices, generators, SIZE, SamplingOptions(**options))


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


def test_objects_without_a_mask_teach_the_score_alone():
    """The mask loss of an object without a mask and its gradient are exactly zero."""
    target = make_target(BOXES, [1, 1], has_mask=[False, False])
    samples = samples_of([target], [[0, 1]])
    assert samples.positive.any()
    assert (samples.labels == 255).all()
    scores = torch.randn(len(samples.boxes), 2, *samples.labels.shape[1:], requires_grad=True)
    losses = mean_over_ranks(instance_losses(scores, samples))
    assert losses["mask"] == 0
    assert losses["score"] > 0
    assert not torch.autograd.grad(losses["mask"], scores, retain_graph=True)[0].any()
    assert torch.autograd.grad(losses["score"], scores)[0].any()

    # beside an object that has one: no pixel of the box without a mask is read
    half = make_target(BOXES, [1, 1], has_mask=[True, False])
    samples = samples_of([half], [[0, 1]])
    known = samples.labels != 255
    assert known.any()
    assert (samples.boxes[known.any(dim=(1, 2))][:, ::2].mean(dim=1) < 15).all()
    scores = torch.randn(len(samples.boxes), 2, *samples.labels.shape[1:], requires_grad=True)
    gradient = torch.autograd.grad(instance_losses(scores, samples)["mask"].total, scores)[0]
    assert not gradient[(~known)[:, None].expand_as(gradient)].any()


def test_losses_are_means_of_cross_entropies():
    samples = samples_of([make_target(BOXES, [1, 1])], [[0, 1]])
    torch.manual_seed(0)
    scores = torch.randn(len(samples.boxes), 2, *samples.labels.shape[1:])
    losses = mean_over_ranks(instance_losses(scores, samples))
    mask, score = [], []
    for index in range(len(samples.boxes)):
        valid, label = samples.grid.valid[index], samples.labels[index]
        mean = scores[index].amax(dim=0)[valid].mean()
        score.append(-torch.log(mean.sigmoid() if samples.positive[index] else 1 - mean.sigmoid()))
        probability = scores[index].softmax(dim=0)
        mask.append(-torch.log(probability[0][label == 1]))
        mask.append(-torch.log(probability[1][label == 0]))
    assert torch.allclose(losses["score"], torch.stack(score).mean(), atol=1e-5)
    assert torch.allclose(losses["mask"], torch.cat(mask).mean(), atol=1e-5)


def test_nothing_drawn_is_no_loss():
    samples = samples_of([make_target([], [])], [[]])
    losses = mean_over_ranks(instance_losses(torch.zeros(0, 2, *samples.labels.shape[1:]), samples))
    assert losses == {"score": 0, "mask": 0}
