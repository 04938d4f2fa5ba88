"""What validation costs beside training."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from dasnet_lightning.types import Batch

EPOCH = 100  # batches: the epoch of stage two in `dasnet train`


class ValidationTime(Callback):
    """Logs `val/seconds` of each validation, its figures included, and `val/share_of_epoch`: of the time of `EPOCH`
    training batches at the mean pace so far, with their loading."""

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
