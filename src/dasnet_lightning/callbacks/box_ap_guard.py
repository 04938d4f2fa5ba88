"""Watches what joint training does to the detector."""

import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from dasnet_lightning.metrics.box import BoxAP


class BoxAPGuard(Callback):
    """Measures the detector's box AP50 before joint training and watches it: says so where it falls by more than
    `tolerance`. Does nothing where the task's detector is frozen, or where the images come without a data module.
    """

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
