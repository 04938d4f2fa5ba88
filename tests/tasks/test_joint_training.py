"""Detector and decoder together: gradients through the attention, two rates, checkpoints both ways."""

import pytest
import torch
from torch import nn

from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.tasks.config import NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.types import Pyramid
from task_builders import TARGETS, TASKS, build_task, gradients, loader, quiet, trainer
from toy import make_batch, make_target

CENTER = [[8.0, 8, 24, 24]]  # what the toy detector always finds, as class 1
BATCH = make_batch([make_target(CENTER, [1]), make_target(CENTER, [1], has_mask=[False])])


def test_stage_wise_is_the_default():
    task = build_task("instance")
    assert isinstance(task.model.detector, FrozenDetector)
    assert not any(parameter.requires_grad for parameter in task.model.detector.parameters())


@pytest.mark.parametrize("kind", TASKS)
def test_the_detector_learns_from_masks_alone_through_the_attention(kind):
    task = quiet(build_task(kind, joint=True, box_loss_weight=0.0))
    task.training_step(BATCH, 0).backward()
    found = gradients(task)
    assert task.logged["train/box_count_loss"] == 0
    assert found["model.detector.stem.0.weight"].any()
    assert found["model.detector.deep.0.weight"].any()
    assert not found["model.detector.score.weight"].any()  # only boxes teach where boxes are


@pytest.mark.parametrize("kind", TASKS)
def test_features_outside_the_boxes_get_no_gradient_from_masks(kind):
    task = quiet(build_task(kind, joint=True, box_loss_weight=0.0))
    detector, seen = task.model.detector, []

    class Watched(nn.Module):
        num_classes, losses = detector.num_classes, staticmethod(detector.losses)

        def features(self, images: torch.Tensor) -> Pyramid:
            pyramid = detector.features(images)
            seen.extend(level.detach().requires_grad_() for level in pyramid.levels)
            return Pyramid(tuple(seen), pyramid.strides, pyramid.size)

    task.model.detector = Watched()
    task.training_step(make_batch([make_target(CENTER, [1])]), 0).backward()
    assert len(seen) == 2
    for level, stride in zip(seen, (4, 8), strict=True):
        inside = torch.zeros(level.shape[2:], dtype=torch.bool)
        inside[8 // stride : 24 // stride, 8 // stride : 24 // stride] = True
        touched = level.grad.abs().sum(dim=(0, 1)) > 0
        assert touched[inside].any()
        assert not touched[~inside].any()


def test_box_losses_are_weighed():
    logged = {}
    for weight in (0.5, 2.0):
        task = quiet(build_task("instance", joint=True, box_loss_weight=weight))
        torch.manual_seed(0)  # of the toy's dropout
        task.training_step(BATCH, 0)
        logged[weight] = task.logged
    assert logged[2.0]["train/box_count_loss"] == pytest.approx(4 * float(logged[0.5]["train/box_count_loss"]))
    parts = [float(value) for name, value in logged[0.5].items() if name.endswith("_loss")]
    assert float(logged[0.5]["train/loss"]) == pytest.approx(sum(parts))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_detector_learns_at_its_own_rate(name, tmp_path):
    config = OptimizerConfig(name, lr=0.01, detector_rate=0.25, double_bias=False, schedule="constant")
    task = build_task("semantic", joint=True, optimizer=config)
    task.trainer = trainer(tmp_path, 3)
    rates = {
        id(parameter): group["lr"]
        for group in task.configure_optimizers()["optimizer"].param_groups
        for parameter in group["params"]
    }
    named = dict(task.model.named_parameters())
    assert len(rates) == len(named)  # each once
    for parameter_name, parameter in named.items():
        assert rates[id(parameter)] == (0.0025 if parameter_name.startswith("detector.") else 0.01), parameter_name


def test_a_schedule_moves_both_rates(tmp_path):
    config = OptimizerConfig("sgd", lr=0.01, detector_rate=0.1, double_bias=False, schedule="onecycle", warmup=0.5)
    task = build_task("semantic", joint=True, optimizer=config)
    task.trainer = trainer(tmp_path, 4)
    built = task.configure_optimizers()
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    for _ in range(4):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates[0] == rates[1] == pytest.approx(10 * rates[2])
        assert rates[2] == rates[3]
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("kind", TASKS)
def test_all_learn_and_box_ap_is_measured(kind, tmp_path):
    task = build_task(kind, joint=True)
    before = {name: parameter.clone() for name, parameter in task.named_parameters()}
    fitter = trainer(tmp_path, 2)
    fitter.fit(task, loader([BATCH] * 2), loader([BATCH]))
    for name in ("model.detector.stem.0.weight", "model.detector.score.weight", "model.decoder.top.weight"):
        assert not torch.equal(before[name], task.get_parameter(name)), name
    metrics = fitter.callback_metrics
    assert metrics["val/box_ap50"] == 1  # images without masks count for boxes
    assert {"val/box_ap", "val/box_ap50/a", "val/miou_detected_boxes", "val/coco_ap_detected_boxes"} <= set(metrics)


def save(task, path, tmp_path):
    fitter = trainer(tmp_path, 1)
    fitter.fit(task, loader([BATCH]), loader([BATCH]))
    fitter.save_checkpoint(path)
    return path


def network(task) -> dict[str, torch.Tensor]:
    return {key.replace(".frozen.module", ""): value for key, value in task.model.state_dict().items()}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("joint_first", [False, True], ids=["frozen first", "joint first"])
def test_a_training_starts_from_a_checkpoint_of_the_other_sort(kind, joint_first, tmp_path):
    first = build_task(kind, joint=joint_first)
    path = save(first, tmp_path / "first.ckpt", tmp_path)
    torch.manual_seed(1)
    second = TASKS[kind](
        3, network=NetworkConfig("toy"), recipe=RecipeConfig(joint=not joint_first, initial_checkpoint=str(path))
    )
    trained = network(first)
    assert not torch.equal(network(second)["head.score.weight"], trained["head.score.weight"])
    second.setup("fit")
    assert set(network(second)) == set(trained)
    assert all(torch.equal(value, trained[key]) for key, value in network(second).items())
    trainable = any(parameter.requires_grad for parameter in second.model.detector.parameters())
    assert trainable == (not joint_first)


def test_a_checkpoint_of_the_other_task_is_refused(tmp_path):
    path = save(build_task("semantic"), tmp_path / "semantic.ckpt", tmp_path)
    other = build_task("instance", initial_checkpoint=str(path))
    with pytest.raises(CheckpointError, match=r"semantic\.ckpt: does not fit"):
        other.setup("fit")


def test_no_mask_at_all_still_trains_the_detector():
    task = quiet(build_task("semantic", joint=True))
    task.training_step(make_batch([TARGETS["no mask"]]), 0).backward()
    assert gradients(task)["model.detector.score.weight"].any()
