"""How fast a training goes: throughput in the log, progress where no terminal is."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

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
