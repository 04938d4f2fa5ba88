"""Both tasks with a decoder of boxes: gradients, frozen detector, missing masks, learning by heart, checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dasnet_lightning.inference.segmenter import load
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from task_builders import BOXES, TARGETS, TASKS, build_task, gradients, loader, quiet, trainer
from toy import make_batch, make_target, make_truth


@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize("kind", TASKS)
def test_every_trainable_parameter_gets_a_gradient(kind, case, joint):
    task = quiet(build_task(kind, decoder="zoom", joint=joint))
    task.training_step(make_batch([TARGETS[case]] * 2), 0).backward()
    found = gradients(task)
    assert all(gradient is not None for gradient in found.values())
    learns = any(bool(gradient.any()) for name, gradient in found.items() if "detector" not in name)
    assert learns == (case in ("all masks", "one mask"))
    assert task.logged["train/regions"] == {"all masks": 4, "one mask": 2}.get(case, 0)
    assert task.logged["train/loss"].isfinite()


@pytest.mark.parametrize("kind", TASKS)
def test_a_missing_mask_is_never_read(kind):
    found = []
    target = make_target(BOXES, [1, 1], has_mask=[True, False])
    for garbage in (False, True):
        masks = target.masks.clone()
        masks[1] = garbage
        task = quiet(build_task(kind, decoder="zoom"))
        task.training_step(make_batch([replace(target, masks=masks)] * 2), 0).backward()
        found.append(gradients(task))
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@pytest.mark.parametrize("kind", TASKS)
def test_the_recipe_reaches_the_loss(kind):
    losses = []
    for options in ({}, {"box_jitter": 0.0}, {"boundary_weight": 0.0}):
        task = quiet(build_task(kind, decoder="zoom", **options))
        task.training_step(make_batch([TARGETS["all masks"]] * 2), 0)
        losses.append(float(task.logged["train/mask_loss"]))
    assert len(set(losses)) == 3
    assert losses[2] < losses[0]


@pytest.mark.parametrize("kind", TASKS)
def test_a_shape_is_learned_by_heart_with_the_detector_frozen_and_the_checkpoint_segments(kind, tmp_path):
    target = make_target([[4.0, 4, 28, 28]], [1])
    target.masks[0, :, 16:] = False  # the left half of the box
    target = replace(target, truth=make_truth(target.masks, [1], target.has_mask))
    batch = make_batch([target, target])
    images = batch.images.clone()
    images[:, :, :, :16] += 2
    batch = replace(batch, images=images)
    options = {"instance": InstanceOptions, "semantic": SemanticOptions}[kind](flip=True, guided_filter=True)
    task = build_task(kind, decoder="zoom", box_jitter=0.0, inference=options)
    before = {key: value.clone() for key, value in task.model.detector.state_dict().items()}
    fitter = trainer(tmp_path, 60)
    fitter.fit(task, loader([batch] * 10), loader([batch]))
    assert all(torch.equal(value, before[key]) for key, value in task.model.detector.state_dict().items())
    plain = replace(options, flip=False, guided_filter=False)
    task.inference = plain
    found = trainer(tmp_path, 1).validate(task, loader([batch]), verbose=False)[0]
    assert found["val/miou_ground_truth_boxes"] > 0.9
    assert found["val/coco_ap75_ground_truth_boxes"] == 1

    fitter.save_checkpoint(tmp_path / "zoom.ckpt")
    segmenter = load(tmp_path / "zoom.ckpt")
    assert segmenter.options == options
    image = (np.clip(images[0].permute(1, 2, 0).numpy(), 0, 1) * 255).astype(np.uint8)
    for chosen in (options, plain):
        segmenter.options = chosen
        mask = segmenter.segment(image, boxes=[[4, 4, 28, 28]], labels=["a"]).masks[0]
        assert 0 < int(mask.sum()) <= 24 * 24
        assert not mask[:4].any()
    assert len(segmenter.segment(image, boxes=np.zeros((0, 4)), labels=[]).masks) == 0
