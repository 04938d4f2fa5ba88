"""The guard measures the detector before and during joint training, and changes neither."""

from dataclasses import replace

import lightning as L
import torch

from dasnet_lightning.callbacks import BoxAPGuard
from dasnet_lightning.detectors import DETECTORS
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.types import Detections, Pyramid
from task_builders import ADAM, build_task, loader, trainer
from toy import ToyDetector, make_batch, make_target

CENTER = [[8.0, 8, 24, 24]]  # what the toy detector always finds, as class 1
BATCH = make_batch([make_target(CENTER, [1]), make_target(CENTER, [1], has_mask=[False])])


class Boxes(L.LightningDataModule):
    """The same few images for training and validation."""

    def train_dataloader(self):
        return loader([BATCH] * 2)

    def val_dataloader(self):
        return loader([BATCH])


class Forgetful(ToyDetector):
    """A toy detector whose box moves away as soon as its weights do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("start", self.score.bias.detach().clone())

    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        far = 1e6 * float((self.score.bias.detach() - self.start).abs())
        return tuple(replace(found, boxes=found.boxes + far) for found in super().detect(pyramid))


def guarded(task, tmp_path, steps=2, **options):
    guard = BoxAPGuard()
    fitter = trainer(tmp_path, steps, callbacks=[guard], **options)
    fitter.fit(task, datamodule=Boxes())
    return guard, fitter


def test_the_guard_measures_before_and_after(tmp_path, capsys):
    guard, _ = guarded(build_task("instance", joint=True), tmp_path)
    said = capsys.readouterr().err
    assert guard.before == 1
    assert "box AP50 before joint training: 1.000" in said
    assert "box AP50 in joint training, step 2: 1.000, before 1.000\n" in said
    assert "forgets" not in said


def test_the_guard_says_so_where_the_detector_forgets(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(DETECTORS._entries, "toy", lambda num_classes, backbone_weights=None: Forgetful(num_classes))
    guard, fitter = guarded(build_task("semantic", joint=True), tmp_path)
    said = capsys.readouterr().err
    assert guard.before == 1
    assert fitter.callback_metrics["val/box_ap50"] == 0
    assert "step 2: 0.000, before 1.000; the detector forgets: lower optimizer.detector_rate" in said


def test_measuring_before_changes_nothing_of_the_training(tmp_path):
    trained = []
    for callbacks in ([], [BoxAPGuard()]):
        task = build_task("instance", joint=True)
        torch.manual_seed(5)
        trainer(tmp_path, 2, callbacks=callbacks).fit(task, datamodule=Boxes())
        trained.append(task.model.state_dict())
    assert all(torch.equal(value, trained[1][key]) for key, value in trained[0].items())


def test_the_guard_is_silent_about_a_frozen_detector(tmp_path, capsys):
    guard, _ = guarded(build_task("instance"), tmp_path)
    assert guard.before is None
    assert "box AP50" not in capsys.readouterr().err


def test_a_continued_training_compares_with_the_first_beginning(tmp_path, capsys):
    _, fitter = guarded(build_task("instance", joint=True, optimizer=ADAM), tmp_path)
    fitter.save_checkpoint(tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["callbacks"]["BoxAPGuard"] == {"before": 1.0}
    capsys.readouterr()
    guard = BoxAPGuard()
    task = build_task("instance", joint=True)
    fitter = trainer(tmp_path, 4, callbacks=[guard])
    fitter.fit(task, datamodule=Boxes(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    said = capsys.readouterr().err
    assert guard.before == 1
    assert "before joint training" not in said  # not measured again, on a detector that has learned already
    assert "step 4: 1.000, before 1.000" in said
