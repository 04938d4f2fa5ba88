"""Callback that measures what joint training does to the detector."""

import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from dasnet_lightning.metrics.box import BoxAP
from dasnet_lightning.tasks.segmentation import SegmentationTask


class BoxAPGuard(Callback):
    """Compares the detector's box AP50 in joint training with the one before it, and reports a loss.

    It does nothing if the detector is frozen, or if the trainer has no data module.

    Args:
        tolerance: decrease of box AP50 (0..1) above which the report says how to stop it.
    """

    def __init__(self, tolerance: float = 0.02) -> None:
        self.tolerance = tolerance
        self.before: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the box AP50 before joint training, for a training that is resumed."""
        return {"before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the box AP50 before joint training."""
        self.before = state_dict["before"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure the detector on the validation images, unless a checkpoint holds the result."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.before is not None or data is None:
            return
        if not isinstance(module, SegmentationTask) or not module.recipe.joint:
            return
        detector, box_ap = module.model.detector, BoxAP()
        module.eval()
        with isolate_rng(), torch.no_grad():  # loaders and dropout draw from the global generators
            for batch in data.val_dataloader():
                detections = detector.detect(detector.features(batch.images.to(module.device)))
                box_ap.update(batch.image_ids, detections, batch.targets)
        module.train()
        self.before = box_ap.compute()["ap50"]
        self._report(trainer, f"before joint training: {self.before:.3f}")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Report the box AP50 of the validation beside the one before joint training."""
        if self.before is None or trainer.sanity_checking or "val/box_ap50" not in trainer.callback_metrics:
            return
        now = float(trainer.callback_metrics["val/box_ap50"])
        text = f"in joint training, step {trainer.global_step}: {now:.3f}, before {self.before:.3f}"
        if self.before - now > self.tolerance:
            text += "; the detector forgets: lower optimizer.detector_rate or raise recipe.box_loss_weight"
        self._report(trainer, text)

    def _report(self, trainer: L.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            print(f"box AP50 {text}", file=sys.stderr, flush=True)
