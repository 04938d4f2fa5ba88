import dataclasses

import torch

from dasnet_lightning.functional.instance_targets import SamplingOptions, draw_samples
from toy import make_target

BOXES = [[2.0, 2, 14, 14], [16, 16, 30, 28]]
SIZE = (32, 32)


def samples_of(targets, drawn, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(targets))]
    indices = [torch.tensor(objects, dtype=torch.int64) for objects in drawn]
    return draw_samples(targets, indices, generators, SIZE, SamplingOptions(**options))


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


def test_samples_follow_the_generators():
    target = make_target(BOXES, [1, 1])
    one, other = samples_of([target], [[0, 1]]), samples_of([target], [[0, 1]])
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.grid.rows, other.grid.rows)
