from dataclasses import replace

import pytest
import torch

from dasnet_lightning.functional.losses import boundary_loss
from dasnet_lightning.functional.shape_targets import MAX_OBJECTS, draw_shapes, shape_labels
from toy import make_target

SIZE = (32, 32)
BOXES = [[2.0, 2, 14, 14], [16, 16, 30, 28], [0, 10, 8, 32]]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_only_objects_with_a_mask_are_drawn_and_each_is_a_region():
    first = make_target(BOXES, [1, 2, 1], has_mask=[True, False, True])
    second = replace(make_target(BOXES[:2], [2, 2]), ignore=torch.tensor([True, False]))
    samples = draw_shapes([first, make_target([], []), second], generators(0, 1, 2), SIZE, jitter=0.0)
    assert samples.objects.tolist() == [0, 2, 1]
    assert samples.regions.image_index.tolist() == [0, 0, 2]
    assert samples.regions.labels.tolist() == [1, 1, 2]
    assert samples.regions.boxes.tolist() == [BOXES[0], BOXES[2], BOXES[1]]
    assert samples.regions.region_index.tolist() == [0, 1, 2]
    nothing = draw_shapes([make_target(BOXES, [1, 2, 1], [False] * 3)], generators(0), SIZE, 0.15)
    assert len(nothing.regions) == 0


def test_half_of_the_boxes_are_jittered_within_the_image():
    target, moved = make_target(BOXES, [1, 2, 1]), []
    for seed in range(200):
        boxes = draw_shapes([target], generators(seed), SIZE, jitter=0.15).regions.boxes
        original = torch.tensor(BOXES)
        extent = (original[:, 2:] - original[:, :2]).repeat(1, 2)
        assert ((boxes - original).abs() <= 0.15 * extent + 1e-5).all()
        assert (boxes >= 0).all()
        assert (boxes <= 32).all()
        moved.append((boxes != original).any(dim=1))
    assert torch.stack(moved).float().mean().item() == pytest.approx(0.5, abs=0.07)


def test_a_crowd_is_capped():
    target = make_target([BOXES[0]] * 20, [1] * 20)
    samples = draw_shapes([target], generators(3), SIZE, 0.0)
    assert len(set(samples.objects.tolist())) == MAX_OBJECTS
    assert samples.objects.tolist() != list(range(MAX_OBJECTS))


def test_labels_are_the_mask_in_the_window_and_void_and_the_outside_are_unknown():
    target = make_target(BOXES, [1, 2, 1])
    target.masks[0, :, 8:] = False
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[10:] = True
    samples = draw_shapes([replace(target, void=void)], generators(0), SIZE, 0.0)
    labels, known = shape_labels([replace(target, void=void)], samples, SIZE, 12, margin=0.1)
    assert labels.shape == known.shape == (3, 12, 12)
    # box 0: 12 pixels and a margin of 1.2, so a cell is 1.2 pixels; the object is its left half
    assert labels[0, 1:11, 1:6].all()
    assert not labels[0, :, 6:].any()
    assert not labels[0, 0].any()
    assert known[0, :7].all()
    assert not known[0, 8:].any()
    # box 2 starts at the left edge of the image: the margin is beyond it
    assert not known[2, :, 0].any()


def test_the_boundary_counts_three_times_and_unknown_cells_do_not():
    labels = torch.zeros(1, 12, 12, dtype=torch.bool)
    labels[:, :, 6:] = True
    known = torch.ones_like(labels)
    logits = torch.zeros(1, 12, 12)
    loss = boundary_loss(logits, labels, known, weight=2.0)
    near = 4 * 12  # two columns on either side
    assert float(loss.total) == pytest.approx((144 + 2 * near) * 0.693147, rel=1e-5)
    assert int(loss.count) == 144
    assert float(boundary_loss(logits, labels, known, 0.0).total) == pytest.approx(144 * 0.693147, rel=1e-5)
    known[:, :, 3:] = False
    assert float(boundary_loss(logits, labels, known, 2.0).total) == pytest.approx(36 * 0.693147, rel=1e-5)
    flat = boundary_loss(logits, torch.ones_like(labels), torch.ones_like(known), 2.0)
    assert float(flat.total) == pytest.approx(144 * 0.693147, rel=1e-5)
