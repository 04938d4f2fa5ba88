import dataclasses

import torch

from dasnet_lightning.functional.instance_targets import SamplingOptions, draw_samples
from dasnet_lightning.functional.losses import instance_losses, mean_over_ranks
from toy import make_target

BOXES = [[2.0, 2, 14, 14], [16, 16, 30, 28]]
SIZE = (32, 32)


def samples_of(targets, drawn, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(targets))]
    chosen = [torch.tensor(one, dtype=torch.int64) for one in drawn]
    return draw_samples(targets, chosen, generators, SIZE, SamplingOptions(**options))


def test_labels_are_the_masks_of_the_matched_objects():
    target = make_target(BOXES, [1, 1])
    samples = samples_of([make_target([], []), target], [[], [0, 1]], pixels=None)
    assert samples.region_index.unique().tolist() == [0]  # the image without objects is no region
    assert (samples.labels[~samples.positive] == 255).all()
    for index in samples.positive.nonzero()[:, 0].tolist():
        source = 0 if samples.boxes[index, ::2].mean() < 15 else 1  # jitter does not reach the other object
        rows, columns = samples.grid.rows[index], samples.grid.columns[index]
        valid = samples.grid.valid[index]
        expected = target.masks[source][rows[:, None], columns[None, :]].long()
        assert torch.equal(samples.labels[index][valid], expected[valid])
        assert (samples.labels[index][~valid] == 255).all()


def test_objects_without_a_mask_teach_the_score_alone():
    """Whatever their masks would say, the mask loss and its gradient are exactly zero."""
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


def test_void_pixels_are_ignored():
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[:8] = True
    target = dataclasses.replace(make_target(BOXES[:1], [1]), void=void)
    samples = samples_of([target], [[0]], pixels=None)
    positives = samples.positive.nonzero()[:, 0].tolist()
    for index in positives:
        in_void = void[samples.grid.rows[index]].any(dim=1)
        assert (samples.labels[index][in_void] == 255).all()
        assert (samples.labels[index][~in_void] != 255).any()


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


def test_samples_follow_the_generators():
    target = make_target(BOXES, [1, 1])
    one, other = samples_of([target], [[0, 1]]), samples_of([target], [[0, 1]])
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.grid.rows, other.grid.rows)
