"""How many images a step really has, which is what a learning rate goes with."""

import sys

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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
