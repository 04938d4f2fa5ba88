"""A training that is stopped anywhere and continued ends where one that never stopped ends, to the bit."""

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from dasnet_lightning.callbacks import AtomicCheckpointIO, Resumable
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.detectors import DETECTORS
from dasnet_lightning.errors import Stopped
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.optimization import OptimizerConfig
from toy import ToyDetector

STEPS, BATCHES, VALIDATE = 14, 5, 4  # an epoch has five batches, a validation comes every four


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=11, num_val=3, size=64)


class Watch(Callback):
    """Notes the images of each step, keeps a copy of each checkpoint, and may do something at the end of a step."""

    def __init__(self, copies: Path | None = None, at: int = -1, act: Any = None) -> None:
        self.seen: list[tuple[int, tuple[str, ...], tuple[int, ...], float]] = []
        self.validated: list[int] = []
        self.copies, self.at, self.act = copies, at, act

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        self.seen.append((trainer.global_step, batch.image_ids, batch.seeds, float(outputs["loss"])))
        if trainer.global_step == self.at:
            self.act()

    def on_validation_batch_start(self, trainer, module, batch, batch_index, number=0):
        self.validated.append(trainer.global_step)

    def on_train_epoch_end(self, trainer, module):
        assert trainer.global_step % BATCHES == 0 or trainer.global_step in (STEPS, self.at)


class Copy(Callback):
    """Comes after Resumable: keeps each of its checkpoints."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source, self.target = source, target
        target.mkdir()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        shutil.copy(self.source, self.target / f"{trainer.global_step}.ckpt")


def build(shapes: Path) -> tuple[DetectionTask, MixedSupervisionDataModule]:
    torch.manual_seed(0)
    optimizer = OptimizerConfig("adamw", lr=1e-2, schedule="onecycle", double_bias=False)
    task = DetectionTask(7, detector="toy", optimizer=optimizer)
    data = MixedSupervisionDataModule(
        str(shapes), image_size=32, batch_size=2, augmentation="ssd", samples_per_epoch=BATCHES * 2
    )
    return task, data


def fit(folder: Path, built: tuple[Any, Any], callbacks: list[Callback], resume: Path | None = None) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=STEPS, check_val_every_n_epoch=None, val_check_interval=VALIDATE, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder, callbacks=callbacks, plugins=[AtomicCheckpointIO()], use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(*built, ckpt_path=resume, weights_only=True)
    return trainer


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """What a training that never stopped gave, with its checkpoint of each step."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DETECTORS._entries, "toy", lambda num_classes: ToyDetector(num_classes))
        built, watch = build(shapes), Watch()
        fit(folder, built, [watch, Resumable(str(folder), 1), Copy(folder / "last.ckpt", folder / "copies")])
    return built[0].state_dict(), watch, folder / "copies"


def disturb() -> None:
    """Another process has other global generators."""
    torch.manual_seed(int.from_bytes(os.urandom(4)))
    np.random.seed(5)  # noqa: NPY002
    random.seed(6)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_continued_after_any_step_it_ends_with_the_same_bits(step, whole, shapes, tmp_path):
    """Also at the end of an epoch (5, 10), at a validation (4, 8, 12), with dropout and a schedule."""
    weights, uninterrupted, copies = whole
    disturb()
    built, watch = build(shapes), Watch()
    trainer = fit(tmp_path, built, [watch, Resumable(str(tmp_path), 0)], copies / f"{step}.ckpt")
    assert trainer.global_step == STEPS
    assert watch.seen == uninterrupted.seen[step:]
    assert watch.validated == [at for at in uninterrupted.validated if at > step]
    for name, value in built[0].state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_images_are_drawn_as_if_epochs_were_nothing(whole):
    _, watch, _ = whole
    drawn = [image for _, images, _, _ in watch.seen for image in images]
    assert all(len(set(drawn[start : start + 11])) == 11 for start in (0, 11))  # rounds of eleven, epochs of ten
    assert len({seed for _, _, seeds, _ in watch.seen for seed in seeds}) == len(drawn)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_told_to_stop_it_saves_and_leaves(told, whole, shapes, tmp_path):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    watch = Watch(at=7, act=lambda: os.kill(os.getpid(), told))
    with pytest.raises(Stopped, match=rf"stopped by {told.name} at step 7; .*last\.ckpt continues there") as stopped:
        fit(tmp_path, build(shapes), [watch, Resumable(str(tmp_path), 0)])
    assert stopped.value.signal == told
    assert len(watch.seen) == 7
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    weights, uninterrupted, _ = whole
    built, rest = build(shapes), Watch()
    fit(tmp_path, built, [rest, Resumable(str(tmp_path), 0)], tmp_path / "last.ckpt")
    assert watch.seen + rest.seen == uninterrupted.seen
    assert all(torch.equal(value, weights[name]) for name, value in built[0].state_dict().items())


def test_told_in_a_validation_it_leaves_at_once(whole, shapes, tmp_path):
    class Tell(Watch):
        def on_validation_batch_start(self, trainer, module, batch, batch_index, number=0):
            super().on_validation_batch_start(trainer, module, batch, batch_index, number)
            os.kill(os.getpid(), signal.SIGTERM)

    tell = Tell()
    with pytest.raises(Stopped, match="SIGTERM at step 4"):
        fit(tmp_path, build(shapes), [tell, Resumable(str(tmp_path), 0)])
    assert tell.validated == [4]  # of two batches
    weights, uninterrupted, _ = whole
    built, rest = build(shapes), Watch()
    fit(tmp_path, built, [rest, Resumable(str(tmp_path), 0)], tmp_path / "last.ckpt")
    assert tell.seen + rest.seen == uninterrupted.seen
    assert all(torch.equal(value, weights[name]) for name, value in built[0].state_dict().items())


def test_a_second_interrupt_does_not_wait(shapes, tmp_path):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):  # what lightning makes of KeyboardInterrupt
        fit(tmp_path, build(shapes), [Watch(at=3, act=twice), Resumable(str(tmp_path), 0)])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # lightning leaves it ignored
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("batch", [3, 4])
def test_between_two_optimizer_steps_nothing_is_saved(batch, shapes, tmp_path):
    """Told in the middle of a step's three batches it finishes the step, and goes on from there to the same bits."""

    class Count(Watch):
        def on_train_epoch_end(self, trainer, module):
            pass

    class Tell(Count):
        def on_train_batch_end(self, trainer, module, outputs, batch_, batch_index):
            super().on_train_batch_end(trainer, module, outputs, batch_, batch_index)
            if len(self.seen) == batch:
                os.kill(os.getpid(), signal.SIGTERM)

    def run(built: tuple[Any, Any], *callbacks: Callback, resume: Path | None = None) -> None:
        trainer = L.Trainer(
            accelerator="cpu", max_steps=4, accumulate_grad_batches=3, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
            use_distributed_sampler=False,
            callbacks=list(callbacks), plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        trainer.fit(*built, ckpt_path=resume, weights_only=True)

    whole, uninterrupted, told, rest = build(shapes), Count(), Tell(), Count()
    run(whole, uninterrupted)
    with pytest.raises(Stopped, match="at step 1" if batch == 3 else "at step 2"):
        run(build(shapes), told, Resumable(str(tmp_path), 0))
    assert len(told.seen) == (3 if batch == 3 else 5)  # an epoch's last batch, the fifth, is a step of its own
    built = build(shapes)
    run(built, rest, Resumable(str(tmp_path), 0), resume=tmp_path / "last.ckpt")
    assert told.seen + rest.seen == uninterrupted.seen
    assert all(torch.equal(value, built[0].state_dict()[name]) for name, value in whole[0].state_dict().items())


def test_a_checkpoint_comes_before_a_validation_in_the_middle_of_a_step(shapes, tmp_path):
    class Tell(Watch):
        def on_validation_batch_start(self, trainer, module, batch, batch_index, number=0):
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = L.Trainer(
        accelerator="cpu", max_steps=4, accumulate_grad_batches=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=4,
        check_val_every_n_epoch=None, callbacks=[Tell(), Resumable(str(tmp_path), 0)], plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    with pytest.raises(Stopped, match="at step 1"):
        trainer.fit(*build(shapes))
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (content["global_step"], content["MixedSupervisionDataModule"]["batches"]) == (1, 3)


def test_where_it_writes(shapes, tmp_path):
    def run(*callbacks: Callback, **options: Any) -> None:
        trainer = L.Trainer(
            accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, callbacks=list(callbacks),
            default_root_dir=tmp_path, **options,
        )  # fmt: skip
        trainer.fit(*build(shapes))

    run(Resumable(every_n_steps=2), ModelCheckpoint(tmp_path / "given", filename="best"))
    assert (tmp_path / "given" / "last.ckpt").is_file()
    watch = Watch(at=1, act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="at step 1; nothing was saved"):
        run(watch, Resumable(every_n_steps=1), enable_checkpointing=False)
    assert len(list(tmp_path.rglob("*.ckpt"))) == 2  # both in the folder of ModelCheckpoint


def test_a_slurm_job_is_put_back_into_the_queue(shapes, tmp_path, monkeypatch, capsys):
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    watch = Watch(at=1, act=lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Stopped):
        fit(tmp_path, build(shapes), [watch, Resumable(str(tmp_path), 0)])
    assert (tmp_path / "asked").read_text() == "requeue 12_3\n"
    assert "SLURM job 12_3: requeued" in capsys.readouterr().err
