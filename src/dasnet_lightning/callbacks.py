"""Callbacks of our own: checkpoints that survive a crash, throughput in the log, progress where no terminal is."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from dasnet_lightning.metrics.box import BoxAP
from dasnet_lightning.types import Batch


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, syncs it to disk and renames it: a crash leaves the old file or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


class Throughput(Callback):
    """Logs `train/images_per_s`, the time of data loading included, over the steps between two log lines."""

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
            module.log("train/images_per_s", self._images / (now - self._since), batch_size=len(batch))
            self._since, self._images = now, 0

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._since = None


class ProgressLines(Callback):
    """One line every `every` seconds, for logs and pipes where a progress bar would be noise."""

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
        if now - self._last < self.every and trainer.global_step < trainer.max_steps:
            return
        self._last = now
        pace = (now - self._started) / max(1, trainer.global_step - self._first_step)
        left = pace * (trainer.max_steps - trainer.global_step)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        value = f"loss {float(loss):.3f}, " if isinstance(loss, Tensor) else ""
        print(
            f"{self.name}: step {trainer.global_step}/{trainer.max_steps}, {value}"
            f"{len(batch) / pace:.1f} images/s, {left / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )


class BoxAPGuard(Callback):
    """Measures the detector's box AP50 before joint training and watches it: says so where it falls by more than
    `tolerance`. Does nothing where the task's detector is frozen, or where the images come without a data module."""

    def __init__(self, tolerance: float = 0.02) -> None:
        self.tolerance = tolerance
        self.before: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["before"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not getattr(module, "joint", False) or self.before is not None or trainer.datamodule is None:  # type: ignore[attr-defined]
            return
        model: Any = module.model
        detector, box_ap = model.detector, BoxAP()
        module.eval()
        with isolate_rng(), torch.no_grad():  # loaders draw from the global generator, dropout too
            for batch in trainer.datamodule.val_dataloader():  # type: ignore[attr-defined]
                found = detector.detect(detector.features(batch.images.to(module.device)))
                box_ap.update(batch.image_ids, found, batch.targets)
        module.train()
        self.before = box_ap.compute()["ap50"]
        self._say(trainer, f"before joint training: {self.before:.3f}")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.before is None or trainer.sanity_checking or "val/box_ap50" not in trainer.callback_metrics:
            return
        now = float(trainer.callback_metrics["val/box_ap50"])
        lost = self.before - now > self.tolerance
        advice = "; the detector forgets: lower optimizer.detector_rate or raise box_loss_weight" if lost else ""
        self._say(
            trainer, f"in joint training, step {trainer.global_step}: {now:.3f}, before {self.before:.3f}{advice}"
        )

    def _say(self, trainer: L.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            print(f"box AP50 {text}", file=sys.stderr, flush=True)
