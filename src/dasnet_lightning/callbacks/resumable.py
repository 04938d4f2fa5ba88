"""Makes a training resumable at every step: it saves where it stands, and when it is told to stop it saves first.

A signal handler only takes a note. Once for each optimizer step all processes compare their notes, so all of them save
and leave at the same step, whichever of them was told: a collective inside a handler, or one process that leaves alone,
would hang the others. A validation changes nothing, so a checkpoint is written before each one; as its processes may have
different numbers of batches, who is told to stop there leaves word in the store of the process group, and all compare
their notes once: where they find such word, or at the end.

Puts a SLURM job back into the queue, as Lightning does; ours follows a checkpoint at an agreed step.
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
WORD = "dasnet_lightning/stop"


class Resumable(Callback):
    """Writes `last.ckpt` every `every_n_steps` optimizer steps (0: never), before validations, and when told to stop by
    SIGTERM, SIGUSR1 or Ctrl-C; then raises Stopped on every process. A second Ctrl-C does not wait.

    folder: where to; None means the folder of the trainer's ModelCheckpoint, and that nothing is saved where it has none.
    Under SLURM, SIGUSR1 also puts the job back into the queue.
    """

    def __init__(self, folder: str | None = None, every_n_steps: int = 100) -> None:
        self.folder = None if folder is None else Path(folder)
        self.every_n_steps = every_n_steps
        self._told = 0  # the number of the first signal that came
        self._handlers: dict[signal.Signals, Any] = {}
        self._group: Any = None
        self._step = -1  # the last optimizer step at which notes were compared
        self._training = False
        self._compared = False  # in the validation that is running

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._told, self._step, self._training = 0, trainer.global_step, True
        self._group = _host_group()
        if is_distributed() and trainer.is_global_zero:
            dist.distributed_c10d._get_default_store().delete_key(WORD)  # left by a training that was stopped before
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there alone
            # after lightning's own, which broadcasts inside the handler
            self._handlers = {number: signal.signal(number, self._take_note) for number in STOP_SIGNALS}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # gradients are being accumulated: there is nothing between two steps to go on from
            return
        self._step, told = step, self._agree()
        if told or _validates_next(trainer) or (self.every_n_steps and step % self.every_n_steps == 0):
            self._save(trainer)
        if told:
            self._leave(trainer, told)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._compared = False

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int, number: int = 0
    ) -> None:
        if self._training and not self._compared and _leave_word(bool(self._told)):
            self._compare_in_validation(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._training and not self._compared:
            self._compare_in_validation(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._end()

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        if self._told and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._told = self._told or number

    def _agree(self) -> int:
        """The signal that any of the processes was sent, on all of them; 0 for none."""
        if not is_distributed():
            return self._told
        told = torch.tensor(self._told)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._group)
        return int(told)

    def _compare_in_validation(self, trainer: L.Trainer) -> None:
        self._compared = True
        told = self._agree()
        if told:
            self._leave(trainer, told)

    def _save(self, trainer: L.Trainer) -> None:
        path = self._path(trainer)
        if path is not None:
            trainer.save_checkpoint(path)

    def _leave(self, trainer: L.Trainer, told: int) -> None:
        path = self._path(trainer)
        kept = "nothing was saved" if path is None else f"{path} continues there"
        if signal.Signals(told).name == "SIGUSR1" and trainer.is_global_zero:
            requeue_on_slurm()
        raise Stopped(f"stopped by {signal.Signals(told).name} at step {trainer.global_step}; {kept}", told)

    def _path(self, trainer: L.Trainer) -> Path | None:
        if self.folder is not None:
            return self.folder / CHECKPOINT
        checkpoint: Any = trainer.checkpoint_callback
        folder = getattr(checkpoint, "dirpath", None)
        return None if folder is None or trainer.fast_dev_run else Path(folder) / CHECKPOINT  # type: ignore[attr-defined]

    def _end(self) -> None:
        self._training = False
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _host_group() -> Any:
    """A group whose collectives run on the host, so that comparing notes does not make it wait for a GPU."""
    return dist.new_group(backend="gloo") if is_distributed() and dist.get_backend() != "gloo" else None


def _leave_word(told: bool) -> bool:
    """Leave word for the other processes if this one was told to stop; whether any of them has."""
    if not is_distributed():
        return told
    store = dist.distributed_c10d._get_default_store()
    if told:
        store.set(WORD, "1")
    return told or bool(store.check([WORD]))


def _validates_next(trainer: L.Trainer) -> bool:
    """Whether a validation may follow this batch, or one of those whose gradients the next step still gathers."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    batches = 1 + (loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx)
    soon = every is not None and -batches % every < trainer.accumulate_grad_batches
    return bool(loop.batch_progress.is_last_batch) or soon


def requeue_on_slurm() -> None:
    """Ask SLURM to start this job again; does nothing outside a job, says so where SLURM refuses."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if not job:
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        complaint = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        complaint = str(error)
    said = f"not requeued: {complaint}" if complaint else "requeued"
    print(f"SLURM job {job}: {said}", file=sys.stderr, flush=True)
