"""Callback that validates and keeps an exponential moving average of the weights instead of their last values."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

STATES = ("current_model_state", "averaging_state")  # what Lightning adds to the checkpoints of an averaged training


class WeightAverage(WeightAveraging):
    """Exponential moving average of weights and buffers, on Lightning's `WeightAveraging`.

    Validations and the final weights use the average. The decay of step t is min(`decay`, (1 + t) / (10 + t)), so that a
    short training is not dominated by its initial weights. Weights that do not change stay the same to the bit.

    Args:
        decay: largest share of the earlier average that a step keeps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        super().__init__(avg_fn=self._average)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the weights, and what a continuation needs unless the training is complete."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.finished:
            for name in STATES:
                checkpoint.pop(name, None)

    def _average(self, averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
        step = float(num_averaged)
        decay = min(self.decay, (1 + step) / (10 + step))
        return averaged + (current - averaged) * (1 - decay) if averaged.is_floating_point() else torch.clone(current)
