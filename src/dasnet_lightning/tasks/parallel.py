"""What a task does for the other processes of a training; nothing where there is one."""

import warnings
from collections.abc import Mapping

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dasnet_lightning.processes import share_buffers, sum_over_processes, world_size


def average_values(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averages over all processes, detached, in one exchange: what is logged is the same everywhere."""
    together = torch.stack([value.detach().float() for value in values.values()])
    return dict(zip(values, sum_over_processes(together) / world_size(), strict=True))


def expect_equal_figures() -> None:
    """Lightning advises to average what is logged after a validation; our figures are the same on all processes."""
    warnings.filterwarnings("ignore", r".*recommended to use `self.log\('(val|test)/.*sync_dist=True.*")


def settle_buffers(task: L.LightningModule) -> None:
    """The same BatchNorm statistics in all processes, those of the first, before they measure and when they end.

    DDP would see to it in the first forward of a validation; but where there are few images a process may have none, and
    the others would wait for it.
    """
    wrapped = task.trainer.strategy.model
    if isinstance(wrapped, DistributedDataParallel):
        share_buffers(task)
        wrapped.require_forward_param_sync = False


def waits_for_others(module: nn.Module) -> bool:
    """Whether a forward of the module waits for that of the other processes."""
    return world_size() > 1 and any(isinstance(part, nn.SyncBatchNorm) and part.training for part in module.modules())
