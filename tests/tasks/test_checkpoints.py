"""What a checkpoint says about itself, and what is said about one that does not fit."""

import pytest
import torch

from dasnet_lightning import __version__
from dasnet_lightning.callbacks import AtomicCheckpointIO
from dasnet_lightning.detectors import DETECTORS
from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.storage.writing import previous_of, write_tensors
from dasnet_lightning.tasks.checkpoint_info import FORMAT, KEY
from dasnet_lightning.tasks.checkpoints import load_checkpoint, newest_good, read_checkpoint
from dasnet_lightning.tasks.config import NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.semantic import SemanticTask
from task_builders import NAMES, TARGETS, TASKS, build_task, loader, trainer
from toy import ToyDetector, make_batch

TOY = NetworkConfig("toy")


@pytest.fixture(autouse=True)
def _toy_of_another_size(monkeypatch):
    def build(num_classes: int, size: int = 48, backbone_weights: None = None) -> ToyDetector:
        detector = ToyDetector(num_classes)
        detector.image_size = (size, size)
        return detector

    monkeypatch.setitem(DETECTORS._entries, "other toy", build)


def batches():
    return loader([make_batch([TARGETS["all masks"]])])


def train(task, folder, **options):
    fitter = trainer(folder, 1)
    fitter.fit(task, batches(), batches(), **options)
    return fitter


@pytest.mark.parametrize("kind", ["detection", *TASKS])
def test_a_checkpoint_says_what_it_is(kind, tmp_path):
    ids = (0, 7, "x")
    build = DetectionTask if kind == "detection" else TASKS[kind]
    task = build(3, list(NAMES), ids, **({"detector": "toy"} if kind == "detection" else {"network": TOY}))
    train(task, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)[KEY] == {
        "version": __version__,
        "format": FORMAT,
        "task": kind,
        "detector": "toy",
        "num_classes": 3,
        "class_names": NAMES,
        "category_ids": ids,
        "image_size": (32, 32),
    }


@pytest.fixture
def semantic(tmp_path):
    """A checkpoint of the semantic task with the toy detector and the classes a and b."""
    train(build_task("semantic"), tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


OTHERS = {
    "task": (lambda: build_task("instance"), "holds a task 'semantic', expected 'instance'"),
    "stage": (lambda: DetectionTask(3, NAMES, detector="toy"), "holds a task 'semantic', expected 'detection'"),
    "detector": (lambda: build_task("semantic", detector="other toy"), "its detector is 'toy', expected 'other toy'"),
    "count": (
        lambda: SemanticTask(4, ("background", "a", "b", "c"), network=TOY),
        r"knows 2 classes \(a, b\), expected 3 classes \(a, b, c\)",
    ),
    "order": (lambda: SemanticTask(3, ("background", "b", "a"), network=TOY), "its class 1 is 'a', expected 'b'"),
    "decoder": (
        lambda: build_task("semantic", decoder_options={"widths": [8, 8, 8]}),
        "0 entries missing, 0 unexpected, .* of another shape",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_kind_is_refused_in_a_sentence(other, semantic):
    build, sentence = OTHERS[other]
    for attempt in (
        lambda: trainer(semantic.parent, 2).fit(build(), batches(), batches(), ckpt_path=semantic),
        lambda: trainer(semantic.parent, 2).validate(build(), batches(), ckpt_path=semantic, verbose=False),
        lambda: load_checkpoint(build(), semantic),
    ):
        with pytest.raises(CheckpointError, match=rf"a\.ckpt: does not fit: .*{sentence}") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_another_image_size_is_refused_where_a_training_continues(tmp_path):
    task = build_task("semantic", detector="other toy", detector_options={"size": 32})
    train(task, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    sentence = (
        rf"images have 32x32 pixels \(height x width\), expected 48x48 \(written by dasnet_lightning {__version__}\)"
    )
    with pytest.raises(CheckpointError, match=sentence):
        trainer(tmp_path, 2).fit(
            build_task("semantic", detector="other toy"), batches(), batches(), ckpt_path=tmp_path / "a.ckpt"
        )
    load_checkpoint(build_task("semantic", detector="other toy"), tmp_path / "a.ckpt")  # weights alone may move


def test_classes_of_a_detector_and_of_a_first_network_are_compared_by_name(semantic):
    for option in ("detector_checkpoint", "initial_checkpoint"):
        recipe = RecipeConfig(**{option: str(semantic)})
        task = SemanticTask(3, ("background", "a", "z"), network=TOY, recipe=recipe)
        with pytest.raises(CheckpointError, match=r"a\.ckpt: does not fit: its class 2 is 'b', expected 'z'"):
            task.setup("fit")
        SemanticTask(3, network=TOY, recipe=recipe).setup("fit")  # without names there is nothing to compare
    with pytest.raises(CheckpointError, match="holds a task 'semantic', expected 'instance'"):
        build_task("instance", initial_checkpoint=str(semantic)).setup("fit")


def test_an_older_checkpoint_is_read_and_one_that_is_too_new_says_so(semantic):
    content = dict(torch.load(semantic, weights_only=True))
    entry = content.pop(KEY)
    older = semantic.with_name("older.ckpt")
    torch.save({key: value for key, value in content.items() if "sealed" not in key}, older)  # format 0, no checksum
    assert KEY not in read_checkpoint(older)
    task = build_task("semantic")
    load_checkpoint(task, older)
    assert torch.equal(task.state_dict()["model.decoder.top.weight"], content["state_dict"]["model.decoder.top.weight"])
    assert trainer(semantic.parent, 2).fit(build_task("semantic"), batches(), batches(), ckpt_path=older) is None
    with pytest.raises(
        CheckpointError, match=r"expected 'instance' \(written by an earlier version, which did not record itself"
    ):
        load_checkpoint(build_task("instance"), older)

    newer = semantic.with_name("newer.ckpt")
    write_tensors(content | {KEY: entry | {"format": FORMAT + 1, "version": "9.1"}}, newer)
    with pytest.raises(
        CheckpointError, match=rf"newer\.ckpt: written by dasnet_lightning 9\.1 in format {FORMAT + 1}, .*: update"
    ):
        read_checkpoint(newer)
    for strange in (
        {"format": 1},
        entry | {"class_names": 5},
        entry | {"format": "x"},
        [1],
        entry | {"image_size": "x"},
    ):
        write_tensors(content | {KEY: strange}, newer)
        with pytest.raises(CheckpointError, match="its entry 'dasnet_lightning' is malformed"):
            read_checkpoint(newer)


FOREIGN = {
    "state dict": (
        {"features.0.weight": torch.zeros(2)},
        r"it is a state dict alone \(1 tensors, the first is 'features",
    ),
    "lightning": (
        {"pytorch-lightning_version": "2.6.6", "state_dict": {"net.w": torch.zeros(1)}, "hyper_parameters": {"lr": 1}},
        "it is a Lightning checkpoint of another project, its model has 'net.w'",
    ),
    "tensor": (torch.zeros(3), "it holds a Tensor"),
    "dict": ({"epoch": 3, "model": {}}, "it holds 'epoch', 'model' and no state_dict"),
    "nothing": ({}, "it holds nothing and no state_dict"),
    "numbers": ({"state_dict": 3, "hyper_parameters": {"detector": "toy", "num_classes": 3}}, "it holds 'state_dict'"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_checkpoint_says_what_it_is(tmp_path, name):
    content, sentence = FOREIGN[name]
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=rf"x\.ckpt: not a checkpoint of dasnet_lightning, {sentence}"):
        read_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x\.ckpt: "):
        trainer(tmp_path, 1).fit(build_task("semantic"), batches(), batches(), ckpt_path=tmp_path / "x.ckpt")


def test_the_newest_good_checkpoint_is_found_and_a_damaged_one_is_told(semantic):
    last, said = semantic.with_name("last.ckpt"), []
    assert newest_good(last, said.append) is None
    content = dict(read_checkpoint(semantic))
    io = AtomicCheckpointIO()
    for step in (1, 2):
        io.save_checkpoint(content | {"global_step": step}, last)
    assert newest_good(last, said.append) == last
    assert not said

    whole = last.read_bytes()
    last.write_bytes(whole[:5000] + b"?" + whole[5001:])
    assert newest_good(last, said.append) == previous_of(last)
    (line,) = said
    assert line.startswith(f"{last}: damaged: its checksum does not match")
    assert line.endswith(f"; continues from the one before, {previous_of(last)}")

    last.unlink()
    assert newest_good(last, said.append) == previous_of(last)
    assert "no such checkpoint; continues from the one before" in said[1]

    previous_of(last).write_bytes(b"")
    last.write_bytes(b"<html>")
    both = r"last\.ckpt: not a checkpoint, it is an HTML.*last\.previous\.ckpt: not a checkpoint, it is empty.*to start again"
    with pytest.raises(CheckpointError, match=both):
        newest_good(last, said.append)
    last.unlink()
    with pytest.raises(CheckpointError, match="none is left"):
        newest_good(last, said.append)
    previous_of(last).unlink()
    last.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="none is left"):
        newest_good(last, said.append)
