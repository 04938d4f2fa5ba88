"""Callbacks that report the speed of a training, its batch size over all ranks, and the cost of validation."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dasnet_lightning.types import Batch

EPOCH = 100  # training batches that the time of a validation is compared with


class Throughput(Callback):
    """Logs `train/images_per_s`: images per second of all ranks since the last log line, data loading included."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._images = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        """Count the images of the batch, and log at every log line."""
        now = time.perf_counter()
        self._images += len(batch)
        if self._since is None:  # the first batch includes starting up, so it does not count
            self._since, self._images = now, 0
        elif trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            images = self._images * trainer.world_size
            module.log("train/images_per_s", images / (now - self._since), batch_size=len(batch))
            self._since, self._images = now, 0

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start again after the validation."""
        self._since = None


class ProgressLines(Callback):
    """Prints progress lines from rank 0, for logs and pipes in which a progress bar is unreadable.

    Args:
        name: name of the training, in front of each line.
        every: seconds between two lines.
    """

    def __init__(self, name: str, every: float = 15.0) -> None:
        self.name = name
        self.every = every
        self._started = self._last = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = self._last = time.perf_counter()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        """Print step, loss, images per second and remaining time, if it is time to."""
        now = time.perf_counter()
        if not trainer.is_global_zero or (now - self._last < self.every and trainer.global_step < trainer.max_steps):
            return
        self._last = now
        seconds_per_step = (now - self._started) / max(1, trainer.global_step - self._first_step)
        remaining = seconds_per_step * (trainer.max_steps - trainer.global_step)
        loss = trainer.callback_metrics.get("train/loss")  # averaged over the ranks
        loss_text = f"loss {float(loss):.3f}, " if isinstance(loss, Tensor) else ""
        print(
            f"{self.name}: step {trainer.global_step}/{trainer.max_steps}, {loss_text}"
            f"{trainer.world_size * len(batch) / seconds_per_step:.1f} images/s, {remaining / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )


class StepSize(Callback):
    """Prints how many images a step has over all ranks, and whether the learning rate was scaled to that number.

    It prints nothing if there is one rank.

    Args:
        name: name of the training, in front of each line.
        scale_lr: "linear" if the learning rate was multiplied by the number of ranks, "none" if not.
    """

    def __init__(self, name: str = "training", scale_lr: str = "none") -> None:
        self.name = name
        self.scale_lr = scale_lr

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Print from rank 0; warn about BatchNorm layers that see the images of one rank alone."""
        if trainer.world_size == 1 or not trainer.is_global_zero:
            return
        batch_size = getattr(trainer.train_dataloader, "batch_size", None)
        factors = [f"{trainer.world_size} processes", *([] if batch_size is None else [f"batch {batch_size}"])]
        factors += [f"{trainer.accumulate_grad_batches} batches"] if trainer.accumulate_grad_batches > 1 else []
        product = ""
        if batch_size is not None:
            product = f" = {trainer.world_size * batch_size * trainer.accumulate_grad_batches} images a step"
        lr = getattr(getattr(module, "optimizer_config", None), "lr", None)
        scaled = "multiplied by the number of processes" if self.scale_lr == "linear" else "not scaled"
        lr_text = "" if lr is None else f"; lr {lr:g} is {scaled}"
        lines = [f"{self.name}: {' x '.join(factors)}{product}{lr_text}"]
        if takes_own_statistics(module):
            advice = "torch joins them on GPUs only" if module.device.type == "cpu" else "sync_batchnorm joins them"
            lines.append(f"{self.name}: BatchNorm takes the statistics of each process's own images ({advice})")
        print("\n".join(lines), file=sys.stderr, flush=True)


def takes_own_statistics(module: nn.Module) -> bool:
    """Return whether a BatchNorm layer in training mode computes its statistics from the images of one rank."""
    return any(
        isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm) and part.training
        for part in module.modules()
    )


class ValidationTime(Callback):
    """Logs the duration of each validation, metrics included.

    `val/seconds` is the duration. `val/share_of_epoch` divides it by the time of `EPOCH` training batches, data loading
    included, at the mean speed so far.
    """

    def __init__(self) -> None:
        self._training_seconds, self._batches = 0.0, 0
        self._last_batch_end: float | None = None
        self._validation_start = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        """Add the time of the batch, unless it includes starting up or a validation."""
        now = time.perf_counter()
        if self._last_batch_end is not None:
            self._training_seconds += now - self._last_batch_end
            self._batches += 1
        self._last_batch_end = now

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock."""
        self._last_batch_end = None
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Log and print the duration, if the speed of training is known."""
        if not self._batches:
            return
        seconds = time.perf_counter() - self._validation_start
        share = seconds / (EPOCH * self._training_seconds / self._batches)
        # `module.log` is not allowed in this hook, and before it the metrics are not computed
        for logger in trainer.loggers:
            logger.log_metrics({"val/seconds": seconds, "val/share_of_epoch": share}, step=trainer.global_step)
        if trainer.is_global_zero:
            text = f"validation: {seconds:.1f} s, {share:.0%} of the time of {EPOCH} training batches"
            print(text, file=sys.stderr, flush=True)
