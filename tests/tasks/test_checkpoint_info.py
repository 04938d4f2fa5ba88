"""Checkpoints of formats 0 and 1, whose hyper-parameters are flat, load wherever those of today do."""

import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from dasnet_lightning.callbacks.nan_guard import describe_step, replay_step
from dasnet_lightning.inference.segmenter import load
from dasnet_lightning.tasks.checkpoint_info import (
    FLAT_BEFORE_FORMAT_2,
    KEY,
    read_info,
    saved_detector,
    upgrade_hyper_parameters,
)
from dasnet_lightning.tasks.checkpoints import load_checkpoint, read_checkpoint
from dasnet_lightning.tasks.config import NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.detection import DetectionTask
from task_builders import TARGETS, TASKS, build_task, loader, trainer
from toy import make_batch

ARCHIVE = Path(__file__).parents[1] / "assets" / "run_0.1.0.tar.xz"
OPTIONS = {"rounding": "inside", "soft_attention": 0.5, "box_loss_weight": 0.25, "decoder_options": {"out_stride": 2}}


@pytest.fixture(scope="module")
def old_runs(tmp_path_factory) -> Path:
    """The folder of two runs of version 0.1.0."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def flatten(hyper_parameters) -> dict:
    """The arguments as the early formats held them; they had none of the later ones."""
    flat = dict(hyper_parameters)
    for group, names in FLAT_BEFORE_FORMAT_2.items():
        nested = flat.pop(group)
        flat |= {name: nested[name] for name in names}
    return flat


def write_flat(task, path: Path, format: int) -> Path:
    """A checkpoint of the task in format 0 or 1, after a training step."""
    batches = loader([make_batch([TARGETS["all masks"]])])
    fitter = trainer(path.parent, 1)
    fitter.fit(task, batches, batches)
    fitter.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] = flatten(content["hyper_parameters"])
    content[KEY]["format"] = format
    content = {key: value for key, value in content.items() if "sealed" not in key and (format or key != KEY)}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", TASKS)
def test_a_checkpoint_of_0_1_0_loads_through_lightning_with_all_of_its_arguments(old_runs, kind):
    path = old_runs / kind / "masks-6" / "final.ckpt"
    raw = torch.load(path, weights_only=True)
    assert raw[KEY]["format"] == 1
    task = TASKS[kind].load_from_checkpoint(path, weights_only=True)
    assert task.model.detector.image_size == (64, 64)  # not the detector's default
    assert task.hparams["network"]["detector"] == "ssd_tiny"
    assert task.recipe.detector_checkpoint == raw["hyper_parameters"]["detector_checkpoint"]
    added_later = asdict(type(task.inference)())
    assert asdict(task.inference) == added_later | raw["hyper_parameters"]["inference"]
    assert all(torch.equal(value, raw["state_dict"][name]) for name, value in task.state_dict().items())


@pytest.mark.parametrize("format", [0, 1])
@pytest.mark.parametrize("kind", TASKS)
def test_a_flat_checkpoint_loads_everywhere(kind, format, tmp_path):
    path = write_flat(build_task(kind, **OPTIONS), tmp_path / "flat.ckpt", format)
    batches = loader([make_batch([TARGETS["all masks"]])])
    content = read_checkpoint(path)
    assert read_info(content, path).format == format
    assert saved_detector(content["hyper_parameters"]) == ("toy", {})

    again = TASKS[kind].load_from_checkpoint(path, weights_only=True)
    network = NetworkConfig("toy", decoder_options={"out_stride": 2}, rounding="inside", soft_attention=0.5)
    assert again.hparams["network"] == asdict(network)
    assert again.recipe == RecipeConfig(box_loss_weight=0.25)
    assert (again.model.rounding, again.model.soft_attention) == ("inside", 0.5)
    given = TASKS[kind].load_from_checkpoint(path, weights_only=True, recipe=RecipeConfig(box_loss_weight=4.0))
    assert given.recipe.box_loss_weight == 4  # an argument of the call comes before the checkpoint's

    task = build_task(kind, **OPTIONS)
    load_checkpoint(task, path)
    build_task(kind, **OPTIONS, initial_checkpoint=str(path)).setup("fit")
    build_task(kind, detector_checkpoint=str(path)).setup("fit")
    trainer(tmp_path, 2).fit(task, batches, batches, ckpt_path=path)
    assert load(path).model.rounding == "inside"


@pytest.mark.parametrize("kind", TASKS)
def test_a_flat_step_is_replayed(kind, tmp_path):
    task, batch = build_task(kind, **OPTIONS), make_batch([TARGETS["all masks"]], seed=4)
    losses, _ = task.train().losses(batch)
    step = describe_step(task, batch)
    torch.save(step | {"hyper_parameters": flatten(step["hyper_parameters"])}, tmp_path / "step.pt")
    _, _, again = replay_step(tmp_path / "step.pt")
    assert losses.keys() == again.keys()
    assert all(torch.equal(losses[name], again[name]) for name in losses)


@pytest.mark.parametrize("kind", TASKS)
def test_version_0_1_0_recognizes_a_checkpoint_and_finds_its_format_too_new(kind, tmp_path):
    """It took a checkpoint for one of ours by these two entries, and for one to be updated for by its format."""
    batches, fitter = loader([make_batch([TARGETS["all masks"]])]), trainer(tmp_path, 1)
    fitter.fit(build_task(kind), batches, batches)
    fitter.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert {"detector", "num_classes"} <= set(content["hyper_parameters"])
    assert content[KEY]["format"] > 1
    assert "detector" not in read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]


def test_upgrading_leaves_what_is_as_it_should_be():
    task = build_task("instance", **OPTIONS)
    assert upgrade_hyper_parameters(task.hparams) == dict(task.hparams)
    known = {
        group: {name: task.hparams[group][name] for name in names} for group, names in FLAT_BEFORE_FORMAT_2.items()
    }
    assert upgrade_hyper_parameters(flatten(task.hparams)) == dict(task.hparams) | known
    detection = dict(DetectionTask(3, detector="toy").hparams)
    assert upgrade_hyper_parameters(detection) == detection


def test_a_detection_checkpoint_is_not_taken_for_stage_two(old_runs):
    with pytest.raises(RuntimeError, match="Missing key"):
        TASKS["semantic"].load_from_checkpoint(old_runs / "semantic" / "detector" / "final.ckpt", weights_only=True)
