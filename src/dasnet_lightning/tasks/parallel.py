"""What a task does for the other processes of a training; nothing where there is one."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dasnet_lightning.distributed import sum_over_processes, world_size


def average_values(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averages over all processes, detached, in one exchange: what is logged is the same everywhere."""
    together = torch.stack([value.detach().float() for value in values.values()])
    return dict(zip(values, sum_over_processes(together) / world_size(), strict=True))


def expect_equal_figures() -> None:
    """Lightning advises to average what is logged after a validation; our figures are the same on all processes."""
    warnings.filterwarnings("ignore", r".*recommended to use `self.log\('(val|test)/.*sync_dist=True.*")


def waits_for_others(module: nn.Module) -> bool:
    """Whether a forward of the module waits for that of the other processes."""
    return world_size() > 1 and any(isinstance(part, nn.SyncBatchNorm) and part.training for part in module.modules())
