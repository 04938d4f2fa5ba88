"""What the processes of the tests of stopping do: train, tell one or all of them to stop, say what came of it."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from trainings import SIZE, build_task, build_trainer

from dasnet_lightning.callbacks import AtomicCheckpointIO, NaNGuard, Resumable
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.errors import Stopped, TrainingError

STEPS, VALIDATE = 6, 3


class Tell(Callback):
    """Sends a signal to its own process, at a step or in the validation after it."""

    def __init__(self, step: int, in_validation: bool) -> None:
        self.step, self.in_validation = step, in_validation

    def on_train_batch_start(self, trainer: L.Trainer, *ignored: Any) -> None:
        if not self.in_validation and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_batch_start(self, trainer: L.Trainer, *ignored: Any) -> None:
        if self.in_validation and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def train(root: Path, folder: Path, told: list[int], step: int = 0, in_validation: bool = False) -> dict[str, Any]:
    """A training of both processes from where it stands; those in `told` are told to stop."""
    task = build_task("detection", "ssd_plain")
    data = MixedSupervisionDataModule(str(root), SIZE, 2, seed=3, samples_per_epoch=8)
    callbacks = [Tell(step, in_validation)] if int(os.environ["LOCAL_RANK"]) in told else []
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=STEPS, val_check_interval=VALIDATE,
        check_val_every_n_epoch=None, logger=False, num_sanity_val_steps=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
        callbacks=[*callbacks, Resumable(str(folder), 0)], plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    last, said = folder / "last.ckpt", ""
    try:
        trainer.fit(task, data, ckpt_path=last if last.is_file() else None, weights_only=True)
    except Stopped as stopped:
        said = str(stopped)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return {"said": said, "step": trainer.global_step, "weights": dict(task.state_dict())}


class Poison(Callback):
    """A pixel of the second process that is no number."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, *ignored: Any) -> None:
        if trainer.global_rank == 1:
            batch.images[0, 0, 0, 0] = torch.nan


def train_on_no_number(root: Path, folder: Path) -> str:
    """What each process says."""
    data = MixedSupervisionDataModule(str(root), SIZE, 2, seed=3, samples_per_epoch=8)
    trainer = build_trainer(folder, callbacks=[Poison(), NaNGuard(str(folder))])
    try:
        trainer.fit(build_task("detection", "ssd_plain"), data)
    except TrainingError as error:
        return str(error)
    finally:
        torch.distributed.destroy_process_group()
    return "nothing was wrong"
