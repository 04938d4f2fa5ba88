import inspect
from dataclasses import asdict, replace

import lightning as L
import numpy as np
import pytest
import torch

from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.functional.instance_targets import SamplingOptions
from dasnet_lightning.inference.segmenter import Segmenter
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.tasks.config import NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.tasks.semantic import SemanticTask
from dasnet_lightning.types import Detections
from task_builders import BOXES, NAMES, TARGETS, TASKS, build_task, gradients, loader, quiet, trainer
from toy import make_batch, make_target, make_truth

FIGURES = {"miou", "apr50_area", "apr70_area", "apr75_area", "apr50_11point", "coco_ap", "coco_ap50", "coco_ap75"}


@pytest.mark.parametrize("kind", TASKS)
def test_the_frozen_detector_stays_bit_identical_and_the_decoder_learns(kind, tmp_path):
    task = build_task(kind)
    task.eval()  # a task put into evaluation before fit still trains its decoder
    before = {key: value.clone() for key, value in task.model.detector.state_dict().items()}
    decoder = {key: value.clone() for key, value in task.model.decoder.state_dict().items()}
    batches = [make_batch([TARGETS["all masks"], TARGETS["one mask"], TARGETS["no object"]], seed=s) for s in range(4)]
    fitter = trainer(tmp_path, 4)
    fitter.fit(task, loader(batches), loader(batches[:1]))
    after = task.model.detector.state_dict()
    assert any("running_mean" in key for key in before)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(not torch.equal(decoder[key], value) for key, value in task.model.decoder.state_dict().items())
    assert task.model.decoder.training
    assert not task.model.detector.frozen.module.training
    metrics = set(fitter.callback_metrics)
    both = {f"val/{figure}_{boxes}" for figure in FIGURES for boxes in ("ground_truth_boxes", "detected_boxes")}
    assert both | {"val/iou_detected_boxes/a", "val/apr50_area_ground_truth_boxes/b"} <= metrics
    assert not any("box_ap" in name for name in metrics)  # stage-wise, the detector was measured before


@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize("kind", TASKS)
def test_every_trainable_parameter_gets_a_gradient(kind, case, joint):
    task = quiet(build_task(kind, joint=joint))
    task.training_step(make_batch([TARGETS[case]] * 2), 0).backward()
    found = gradients(task)
    assert len(found) > 10
    assert any("detector" in name for name in found) == joint
    assert all(gradient is not None for gradient in found.values())
    learning = {"semantic": ("all masks", "one mask"), "instance": ("all masks", "one mask", "no mask")}[kind]
    learns = any(bool(gradient.any()) for name, gradient in found.items() if "detector" not in name)
    assert learns == (case in learning)
    assert (task.logged["train/regions"] > 0) == (case in learning)
    assert task.logged["train/loss"].isfinite()


@pytest.mark.parametrize("kind", TASKS)
def test_a_batch_may_mix_images_with_some_masks_without_masks_and_without_objects(kind):
    batch = make_batch([TARGETS[case] for case in ("no object", "no mask", "one mask", "all masks")])
    task = quiet(build_task(kind))
    task.training_step(batch, 0).backward()
    assert task.logged["train/regions"] == {"semantic": 2, "instance": 3}[kind]
    assert task.logged["train/mask_loss"] > 0
    assert all(bool(gradient.any()) for name, gradient in gradients(task).items() if "head" in name)


@pytest.mark.parametrize("kind", TASKS)
def test_draws_follow_the_seeds_of_the_batch_alone(kind):
    task = quiet(build_task(kind))

    def loss(batch_seed: int, global_seed: int) -> float:
        torch.manual_seed(global_seed)
        targets = [TARGETS["all masks"], make_target([*BOXES, [1, 18, 12, 30]], [1, 1, 1])]
        batch = make_batch(targets)
        return float(task.training_step(replace(batch, seeds=(batch_seed, batch_seed + 1)), 0).detach())

    assert loss(0, 0) == loss(0, 0) == loss(0, 77)
    assert len({loss(seed, 0) for seed in range(6)}) > 1


@pytest.mark.parametrize("kind", TASKS)
def test_hyper_parameters_are_the_arguments_with_their_defaults(kind, tmp_path):
    cache = {"feature_cache": str(tmp_path / "features"), "feature_cache_gb": 0.1}
    task = build_task(kind, rounding="inside", box_loss_weight=0.5, **cache)
    fitter = trainer(tmp_path, 1)
    fitter.fit(task, loader([make_batch([TARGETS["all masks"]])]), loader([make_batch([TARGETS["all masks"]])]))
    fitter.save_checkpoint(tmp_path / "task.ckpt")
    saved = read_checkpoint(tmp_path / "task.ckpt")["hyper_parameters"]
    arguments = inspect.signature(TASKS[kind].__init__).parameters
    kept = [name for name in arguments if name not in ("self", "optimizer", "evaluation")]  # a training's, a machine's
    expected = {name: arguments[name].default for name in kept}
    expected |= {"num_classes": 3, "class_names": NAMES}
    expected["network"] = asdict(NetworkConfig("toy", rounding="inside"))
    expected["recipe"] = asdict(RecipeConfig(box_loss_weight=0.5))
    expected["inference"] = asdict(SemanticOptions() if kind == "semantic" else InstanceOptions())
    expected |= {"sampling": asdict(SamplingOptions())} if kind == "instance" else {}
    assert saved == expected
    assert saved["task"] == kind
    assert type(saved["network"]) is type(saved["recipe"]) is dict
    again = TASKS[kind](**saved)  # mappings are accepted
    assert (again.recipe, again.hparams) == (task.recipe, task.hparams)


@pytest.mark.parametrize("kind", TASKS)
def test_validation_with_a_feature_cache_gives_the_same_figures(kind, tmp_path):
    """Trained between two validations: the decoder is another one, the features are those on disk."""
    masked = [TARGETS["all masks"], TARGETS["one mask"], TARGETS["no object"]]
    batches = [make_batch(masked, seed=seed) for seed in (0, 7)]
    found = {}
    for folder in (None, str(tmp_path)):
        task = build_task(kind, feature_cache=folder)
        before = trainer(tmp_path, 1).validate(task, loader(batches), verbose=False)[0]
        quietly = trainer(tmp_path, 3, limit_val_batches=0)
        quietly.fit(task, loader([make_batch(masked, seed=3)] * 3), loader(batches))
        after = trainer(tmp_path, 1).validate(task, loader(batches), verbose=False)[0]
        found[folder] = (before, after, trainer(tmp_path, 1).test(task, loader(batches), verbose=False)[0])
    without, cached = found.values()
    assert cached == without
    assert cached[0] != cached[1] == cached[2]
    assert (task.feature_cache.misses, task.feature_cache.hits) == (6, 12)  # and nothing of the training


def test_a_feature_cache_is_for_a_frozen_detector(tmp_path):
    with pytest.raises(ConfigError, match="feature_cache needs a frozen detector"):
        build_task("semantic", joint=True, feature_cache=str(tmp_path))


def test_an_object_without_a_mask_gives_no_mask_gradient():
    """The same picture with and without a second, mask-less object of another class: the same gradients."""
    found = []
    alone = make_target(BOXES[:1], [1])
    for target in (alone, TARGETS["one mask"]):
        task = quiet(build_task("semantic"))
        task.training_step(make_batch([target]), 0).backward()
        found.append(gradients(task))
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@pytest.mark.parametrize("kind", TASKS)
def test_a_few_shapes_can_be_learned_by_heart(kind, tmp_path):
    target = make_target([[4.0, 4, 28, 28]], [1])
    target.masks[0, :, 16:] = False  # the left half of the box
    target = replace(target, truth=make_truth(target.masks, [1], target.has_mask))
    batch = make_batch([target])
    images = batch.images.clone()
    images[:, :, :, :16] += 2  # what is to be seen
    batch = replace(batch, images=images)
    task = build_task(kind, decoder_options={"out_stride": 2})
    before = trainer(tmp_path, 1).validate(task, loader([batch]), verbose=False)[0]
    trainer(tmp_path, 60).fit(task, loader([batch] * 10), loader([batch]))
    after = trainer(tmp_path, 1).validate(task, loader([batch]), verbose=False)[0]
    assert after["val/miou_ground_truth_boxes"] > max(0.9, before["val/miou_ground_truth_boxes"])
    assert after["val/coco_ap75_ground_truth_boxes"] == 1


@pytest.mark.parametrize("kind", TASKS)
def test_stage_two_starts_from_a_checkpoint_of_stage_one(kind, tmp_path):
    batches = [make_batch([TARGETS["no mask"], TARGETS["no object"]])]
    first = DetectionTask(3, NAMES, detector="toy")
    fitter = trainer(tmp_path, 2)
    fitter.fit(first, loader(batches), loader(batches))
    fitter.save_checkpoint(tmp_path / "one.ckpt")
    second = build_task(kind, detector_checkpoint=str(tmp_path / "one.ckpt"))
    fitter = trainer(tmp_path, 1)
    masked = loader([make_batch([TARGETS["all masks"]])])
    fitter.fit(second, masked, masked)
    fitter.save_checkpoint(tmp_path / "two.ckpt")
    inner = second.model.detector.frozen.module.state_dict()
    assert all(torch.equal(value, inner[key]) for key, value in first.detector.state_dict().items())
    assert read_checkpoint(tmp_path / "two.ckpt")["hyper_parameters"]["class_names"] == NAMES
    assert not list(tmp_path.glob("*.tmp"))

    torch.manual_seed(0)
    other = TASKS[kind](
        4, network=NetworkConfig("toy"), recipe=RecipeConfig(detector_checkpoint=str(tmp_path / "one.ckpt"))
    )
    with pytest.raises(CheckpointError, match=r"one\.ckpt: "):
        trainer(tmp_path, 1).fit(other, masked, masked)

    (tmp_path / "one.ckpt").unlink()  # a whole stage two needs nothing else
    again = TASKS[kind].load_from_checkpoint(tmp_path / "two.ckpt", weights_only=True)
    assert again.inference == second.inference
    found = trainer(tmp_path, 1).validate(again, masked, verbose=False)[0]
    assert found == trainer(tmp_path, 1).validate(second, masked, verbose=False)[0]


def test_onecycle_needs_to_know_where_it_ends(tmp_path):
    task = SemanticTask(3, NAMES, network=NetworkConfig("toy"), optimizer=OptimizerConfig("adamw", schedule="onecycle"))
    task.trainer = trainer(tmp_path, -1)
    with pytest.raises(ConfigError, match="max_steps"):
        task.configure_optimizers()


def test_the_papers_recipe_doubles_the_rate_of_biases_without_decay():
    task = SemanticTask(3, NAMES, network=NetworkConfig("toy"))
    task.trainer = L.Trainer(accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False)
    built = task.configure_optimizers()
    weights, biases = built["optimizer"].param_groups
    assert (weights["lr"], weights["weight_decay"], weights["momentum"]) == (0.01, 5e-4, 0.9)
    assert (biases["lr"], biases["weight_decay"]) == (0.02, 0.0)
    trained = {id(p) for group in (weights, biases) for p in group["params"]}
    assert trained == {id(p) for p in task.model.parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", TASKS)
def test_ground_truth_boxes_are_never_capped_in_validation(kind):
    """Seven classes of true boxes in a picture are all segmented; detected boxes keep the caps of the options."""
    task = build_task(kind)
    options = {"max_classes": 1} if kind == "semantic" else {"max_detections": 1}
    task.inference = replace(task.inference, score_threshold=0.0, **options)
    corners = [[4.0 * n, 4.0 * n, 4.0 * n + 4, 4.0 * n + 4] for n in range(7)]
    boxes = Detections(torch.tensor(corners), torch.tensor([1, 2, 1, 2, 1, 2, 1]), torch.ones(7))
    pyramid = task.model.detector.features(torch.rand(1, 3, 32, 32))
    assert len(task.predict(pyramid, [boxes], [(32, 32)], given=True)[0].masks) == 7
    assert len(task.predict(pyramid, [boxes], [(32, 32)])[0].masks) < 7
    seen = {}
    predict = task.predict

    def watch(pyramid, detections, sizes, given=False, *refinement):
        seen.setdefault(given, []).append(detections)
        return predict(pyramid, detections, sizes, given, *refinement)

    task.predict = watch
    quiet(task.eval()).validation_step(make_batch([TARGETS["all masks"]]), 0)
    assert {given: len(calls) for given, calls in seen.items()} == {True: 1, False: 1}
    assert seen[True][0][0].labels.tolist() == [1, 2]


@pytest.mark.parametrize("kind", TASKS)
def test_a_segmenter_segments_all_given_boxes_and_knows_classes_by_their_names_only(kind):
    task = build_task(kind)
    options = SemanticOptions(max_classes=1) if kind == "semantic" else InstanceOptions(max_detections=1)
    segmenter = Segmenter(task.model, ("background", "background", "void"), replace(options, score_threshold=0.9))
    image = np.zeros((32, 32, 3), np.uint8)
    boxes = [[4.0 * n, 4.0 * n, 4.0 * n + 4, 4.0 * n + 4] for n in range(6)]
    found = segmenter.segment(image, boxes=boxes, labels=["background", "void", 1, 2, 1, 2])
    assert found.labels.tolist() == [1, 2, 1, 2, 1, 2]
    assert found.boxes.tolist() == boxes
    segmenter.class_names = ("background", "a", "b")
    for label in ("background", 0, 3, "3"):
        with pytest.raises(ConfigError, match=f"no class {label!r}; known: a, b"):
            segmenter.segment(image, boxes=boxes[:1], labels=[label])
