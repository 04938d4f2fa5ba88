"""Callback that makes a training resumable at every step, and saves a checkpoint before a signal stops it.

A signal handler only records the signal. The ranks compare their records once per optimizer step, so that all of them save
and leave at the same step, whichever got the signal. A collective inside a handler, or one rank that leaves alone, would
hang the others.

Validation does not change the weights, so a checkpoint is written before each one, and a signal stops it at once. The ranks
may have different numbers of validation batches, and cannot compare after each. Instead a rank that got a signal sets a key
in the store of the process group. Each rank compares once: after the first batch at which it finds the key, else at the end.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from dasnet_lightning.distributed import STOP_SIGNALS, is_distributed
from dasnet_lightning.errors import Stopped

CHECKPOINT = "last.ckpt"
STOP_KEY = "dasnet_lightning/stop"


class Resumable(Callback):
    """Writes `last.ckpt` regularly, before validations and at a stop signal, which then ends the training.

    SIGTERM, SIGUSR1 and Ctrl-C finish the running step, save, and raise Stopped on every rank. A second Ctrl-C does not
    wait. Under SLURM, SIGUSR1 also requeues the job.

    Args:
        folder: where `last.ckpt` is written; None means the folder of the trainer's ModelCheckpoint. Without either,
            nothing is saved.
        every_n_steps: optimizer steps between two checkpoints; 0 writes none between validations.
    """

    def __init__(self, folder: str | None = None, every_n_steps: int = 100) -> None:
        self.folder = None if folder is None else Path(folder)
        self.every_n_steps = every_n_steps
        self._signal = 0  # number of the first signal that came
        self._handlers: dict[signal.Signals, Any] = {}
        self._group: Any = None
        self._step = -1  # last optimizer step at which the ranks compared signals
        self._training = False
        self._compared = False  # whether they did in the running validation

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Install the signal handlers."""
        self._signal, self._step, self._training = 0, trainer.global_step, True
        self._group = _cpu_group()
        if is_distributed() and trainer.is_global_zero:
            dist.distributed_c10d._get_default_store().delete_key(STOP_KEY)  # from a training that was stopped before
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in the main thread only
            # installed after Lightning's own handlers, which run a collective
            self._handlers = {number: signal.signal(number, self._record_signal) for number in STOP_SIGNALS}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Save if it is time to, or if any rank got a signal; then leave."""
        step = trainer.global_step
        if step == self._step:  # gradients are accumulating: a training cannot resume between two optimizer steps
            return
        self._step, number = step, self._signal_of_any_rank()
        if number or _validates_next(trainer) or (self.every_n_steps and step % self.every_n_steps == 0):
            self._save(trainer)
        if number:
            self._leave(trainer, number)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin a validation in which the ranks have not compared yet."""
        self._compared = False

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int, number: int = 0
    ) -> None:
        """Leave if a rank has announced a signal in the store."""
        if self._training and not self._compared and _announce_stop(bool(self._signal)):
            self._compare_in_validation(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Compare signals if this rank has not: others may wait for it."""
        if self._training and not self._compared:
            self._compare_in_validation(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Restore the signal handlers."""
        self._restore_handlers()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self._restore_handlers()

    def _record_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number

    def _signal_of_any_rank(self) -> int:
        """Return the number of a signal that any rank got, the same on all ranks; 0 if none did."""
        if not is_distributed():
            return self._signal
        number = torch.tensor(self._signal)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        return int(number)

    def _compare_in_validation(self, trainer: L.Trainer) -> None:
        self._compared = True
        number = self._signal_of_any_rank()
        if number:
            self._leave(trainer, number)

    def _save(self, trainer: L.Trainer) -> None:
        path = self._path(trainer)
        if path is not None:
            trainer.save_checkpoint(path)

    def _leave(self, trainer: L.Trainer, number: int) -> None:
        path, name = self._path(trainer), signal.Signals(number).name
        outcome = "nothing was saved" if path is None else f"{path} continues there"
        if name == "SIGUSR1" and trainer.is_global_zero:
            requeue_on_slurm()
        raise Stopped(f"stopped by {name} at step {trainer.global_step}; {outcome}", number)

    def _path(self, trainer: L.Trainer) -> Path | None:
        if self.folder is not None:
            return self.folder / CHECKPOINT
        checkpoint: Any = trainer.checkpoint_callback
        folder = getattr(checkpoint, "dirpath", None)
        return None if folder is None or trainer.fast_dev_run else Path(folder) / CHECKPOINT  # type: ignore[attr-defined]

    def _restore_handlers(self) -> None:
        self._training = False
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _cpu_group() -> Any:
    """Return a process group whose collectives run on the CPU, so that comparing signals never waits for a GPU."""
    return dist.new_group(backend="gloo") if is_distributed() and dist.get_backend() != "gloo" else None


def _announce_stop(stopping: bool) -> bool:
    """Tell the other ranks through the store if this one got a signal; return whether any rank has."""
    if not is_distributed():
        return stopping
    store = dist.distributed_c10d._get_default_store()
    if stopping:
        store.set(STOP_KEY, "1")
    return stopping or bool(store.check([STOP_KEY]))


def _validates_next(trainer: L.Trainer) -> bool:
    """Return whether a validation may come before the next optimizer step ends."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    batches = 1 + (loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx)
    soon = every is not None and -batches % every < trainer.accumulate_grad_batches
    return bool(loop.batch_progress.is_last_batch) or soon


def requeue_on_slurm() -> None:
    """Requeue this SLURM job and print the outcome; does nothing outside a job.

    Lightning does the same, but not after a checkpoint at a step that all ranks agreed on.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if not job:
        return
    try:
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        error_text = result.stderr.strip() if result.returncode else ""
    except OSError as error:
        error_text = str(error)
    outcome = f"not requeued: {error_text}" if error_text else "requeued"
    print(f"SLURM job {job}: {outcome}", file=sys.stderr, flush=True)
