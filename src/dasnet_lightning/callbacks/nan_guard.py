"""Stops where a loss is no number any more, before it reaches the weights, and keeps what is needed to see it again."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dasnet_lightning.distributed import sum_over_processes
from dasnet_lightning.errors import TrainingError
from dasnet_lightning.tasks.replay import describe_step
from dasnet_lightning.types import Batch


class NaNGuard(Callback):
    """Raises TrainingError where a loss is infinite or not a number: names the images and writes a dump.

    Over several processes it raises in all of them, also where the loss of their own images is one: a process that leaves
    alone would keep the others waiting.

    folder: of the dump, `nan-step-N.pt`: the weights before that step, the hyper-parameters, the batch as the network
    saw it; None means the trainer's own. `tasks.replay.replay_step` computes the losses of a dump again.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._batch: Batch | None = None

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, batch_index: int) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: L.Trainer, module: Any, loss: Tensor) -> None:
        lost = ~loss.detach().isfinite()
        if self._batch is None or not sum_over_processes(lost.float()):
            return
        if not lost:
            raise TrainingError(
                f"the loss of step {trainer.global_step} is no number in another process, its own message names the images"
            )
        folder = Path(trainer.default_root_dir) if self.folder is None else self.folder
        path = folder / f"nan-step-{trainer.global_step}-rank-{trainer.global_rank}.pt"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(describe_step(module, self._batch), path)
        images = ", ".join(f"'{image_id}'" for image_id in self._batch.image_ids)
        raise TrainingError(
            f"the loss of step {trainer.global_step} is {float(loss.detach())}, for the images {images}; look at their labels, "
            f"lower the learning rate or use precision 32-true; {path} holds the step (tasks.replay.replay_step)"
        )
