"""How fast a training goes: throughput in the log, progress where no terminal is.

How many images a step really has, which is what a learning rate goes with.

What validation costs beside training.
"""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dasnet_lightning.types import Batch


class Throughput(Callback):
    """Logs `train/images_per_s` over all processes, the time of data loading included, between two log lines."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._images = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        now = time.perf_counter()
        self._images += len(batch)
        if self._since is None:  # the first batch also pays for starting up
            self._since, self._images = now, 0
        elif trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            images = self._images * trainer.world_size
            module.log("train/images_per_s", images / (now - self._since), batch_size=len(batch))
            self._since, self._images = now, 0

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._since = None


class ProgressLines(Callback):
    """One line every `every` seconds from the first process, for logs and pipes where a progress bar would be noise."""

    def __init__(self, name: str, every: float = 15.0) -> None:
        self.name = name
        self.every = every
        self._started = self._last = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._started = self._last = time.perf_counter()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        now = time.perf_counter()
        if not trainer.is_global_zero or (now - self._last < self.every and trainer.global_step < trainer.max_steps):
            return
        self._last = now
        pace = (now - self._started) / max(1, trainer.global_step - self._first_step)
        left = pace * (trainer.max_steps - trainer.global_step)
        loss = trainer.callback_metrics.get("train/loss")  # of all processes
        value = f"loss {float(loss):.3f}, " if isinstance(loss, Tensor) else ""
        print(
            f"{self.name}: step {trainer.global_step}/{trainer.max_steps}, {value}"
            f"{trainer.world_size * len(batch) / pace:.1f} images/s, {left / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )


class StepSize(Callback):
    """Says at the start how many images a step has over all processes, and whether the learning rate was scaled to it.

    name: of the stage. scale_lr: "linear" where the rate was multiplied by the number of processes. Silent where there
    is one process.
    """

    def __init__(self, name: str = "training", scale_lr: str = "none") -> None:
        self.name = name
        self.scale_lr = scale_lr

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.world_size == 1 or not trainer.is_global_zero:
            return
        batch = getattr(trainer.train_dataloader, "batch_size", None)
        parts = [f"{trainer.world_size} processes", *([] if batch is None else [f"batch {batch}"])]
        parts += [f"{trainer.accumulate_grad_batches} batches"] if trainer.accumulate_grad_batches > 1 else []
        images = (
            "" if batch is None else f" = {trainer.world_size * batch * trainer.accumulate_grad_batches} images a step"
        )
        rate = getattr(getattr(module, "optimizer_config", None), "lr", None)
        scaled = "multiplied by the number of processes" if self.scale_lr == "linear" else "not scaled"
        lines = [f"{self.name}: {' x '.join(parts)}{images}" + ("" if rate is None else f"; lr {rate:g} is {scaled}")]
        if takes_own_statistics(module):
            needs = "torch joins them on GPUs only" if module.device.type == "cpu" else "sync_batchnorm joins them"
            lines.append(f"{self.name}: BatchNorm takes the statistics of each process's own images ({needs})")
        print("\n".join(lines), file=sys.stderr, flush=True)


def takes_own_statistics(module: nn.Module) -> bool:
    """Whether a BatchNorm trains that knows the images of one process alone."""
    return any(
        isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm) and part.training
        for part in module.modules()
    )


EPOCH = 100  # batches: the epoch of stage two in `dasnet train`


class ValidationTime(Callback):
    """Logs `val/seconds` of each validation, its figures included, and `val/share_of_epoch`: of the time of `EPOCH`
    training batches at the mean pace so far, with their loading.
    """

    def __init__(self) -> None:
        self._training, self._batches = 0.0, 0
        self._last: float | None = None
        self._started = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        now = time.perf_counter()
        if self._last is not None:  # a batch after the start or after a validation also pays for these
            self._training += now - self._last
            self._batches += 1
        self._last = now

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._last = None
        self._started = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._batches:
            return
        seconds = time.perf_counter() - self._started
        share = seconds / (EPOCH * self._training / self._batches)
        # nothing can be logged through the module any more, and before this hook the figures are not computed
        for logger in trainer.loggers:
            logger.log_metrics({"val/seconds": seconds, "val/share_of_epoch": share}, step=trainer.global_step)
        if trainer.is_global_zero:
            text = f"validation: {seconds:.1f} s, {share:.0%} of the time of {EPOCH} training batches"
            print(text, file=sys.stderr, flush=True)
