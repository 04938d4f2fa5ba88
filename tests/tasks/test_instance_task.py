from dataclasses import replace

import pytest
import torch

from dasnet_lightning.functional.instance_targets import SamplingOptions
from dasnet_lightning.functional.losses import mean_over_ranks
from dasnet_lightning.functional.regions import ground_truth_detections
from dasnet_lightning.models.instance import InstanceOptions
from task_builders import BOXES, TARGETS, build_task, gradients, loader, quiet, trainer
from toy import make_batch, make_target, make_truth


def part_losses(task, batch):
    """Score loss and mask loss, each with its own gradients."""
    sums, regions = task.mask_losses(task.model.detector.features(batch.images), batch)
    parts = {}
    for name, loss in mean_over_ranks(sums).items():
        trainable = [parameter for parameter in task.parameters() if parameter.requires_grad]
        parts[name] = (loss, torch.autograd.grad(loss, trainable, retain_graph=True, allow_unused=True))
    return parts, regions


def test_objects_without_a_mask_teach_the_score_and_nothing_of_the_mask():
    parts, regions = part_losses(build_task("instance"), make_batch([TARGETS["no mask"]]))
    assert regions == 1
    score, mask = parts["score"], parts["mask"]
    assert score[0] > 0
    assert any(bool(gradient.any()) for gradient in score[1] if gradient is not None)
    assert mask[0] == 0
    assert not any(bool(gradient.any()) for gradient in mask[1] if gradient is not None)


def test_what_stands_where_a_mask_is_missing_is_never_read():
    """Whatever the tensor holds in the place of a missing mask: the same step."""
    found = []
    target = make_target(BOXES, [1, 1], has_mask=[True, False])
    for garbage in (False, True):
        masks = target.masks.clone()
        masks[1] = garbage
        task = quiet(build_task("instance", subset=False))
        task.training_step(make_batch([replace(target, masks=masks)]), 0).backward()
        assert task.logged["train/mask_loss"] > 0
        found.append(gradients(task))
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_without_negatives_every_sampled_box_is_to_score_high():
    task = build_task("instance", sampling=SamplingOptions(negatives=0))
    with torch.no_grad():
        task.model.head.score.bias.fill_(30)  # every box is called right
    parts, _ = part_losses(task, make_batch([TARGETS["all masks"]]))
    assert parts["score"][0] < 1e-6
    task.sampling = SamplingOptions()
    parts, _ = part_losses(task, make_batch([TARGETS["all masks"]]))
    assert parts["score"][0] > 5


def test_cells_and_sampling_reach_the_network():
    task = build_task("instance", cells=3)
    assert task.model.head.out_channels == 2 * 9
    assert task.hparams["cells"] == 3
    parts, _ = part_losses(task, make_batch([TARGETS["all masks"]]))
    assert set(parts) == {"score", "mask"}


def crossing() -> tuple[torch.Tensor, list[list[float]]]:
    """Two triangles of one class that touch along a diagonal; their boxes overlap in more than half of each."""
    boxes = [[2.0, 2, 26, 26], [6, 6, 30, 30]]
    row, column = torch.arange(32)[:, None], torch.arange(32)[None, :]
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 2:26, 2:26] = True
    masks[1, 6:30, 6:30] = True
    masks[0] &= row + column < 31
    masks[1] &= row + column >= 31
    return masks, boxes


@pytest.mark.parametrize("grouping", ["instance", "class"])
def test_two_touching_objects_of_one_class_are_told_apart_by_heart(grouping, tmp_path):
    masks, boxes = crossing()
    target = make_target(boxes, [1, 1])
    target = replace(target, masks=masks, truth=make_truth(masks, [1, 1], target.has_mask))
    batch = make_batch([target])
    options = InstanceOptions(grouping=grouping)
    task = build_task("instance", decoder_options={"out_stride": 2}, inference=options)
    trainer(tmp_path, 120).fit(task, loader([replace(batch, seeds=(seed,)) for seed in range(40)]), loader([batch]))
    task.eval()
    with torch.no_grad():
        pyramid = task.model.detector.features(batch.images)
        answer = task.predict(pyramid, [ground_truth_detections(target)], [(32, 32)])[0]
    overlap = (answer.masks & masks).sum(dim=(1, 2)) / (answer.masks | masks).sum(dim=(1, 2))
    assert overlap.min() > 0.8, overlap
    assert (answer.masks[0] & answer.masks[1]).sum() < 0.05 * masks.sum()
    assert ((answer.semantic == 1) == masks.any(dim=0)).float().mean() > 0.9
