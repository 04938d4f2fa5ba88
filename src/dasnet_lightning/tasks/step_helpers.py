"""Helpers of the tasks' training and validation steps: averages over ranks, logged metrics, seeds of the global generators."""

import random
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dasnet_lightning.distributed import sum_over_ranks, world_size
from dasnet_lightning.types import Batch

LOGGED_BY_CLASS = ("iou", "apr50_area", "box_ap50")


def average_values(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return scalars averaged over all ranks, detached, with a single all-reduce."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    return dict(zip(values, sum_over_ranks(stacked) / world_size(), strict=True))


def silence_sync_dist_warning() -> None:
    """Silence Lightning's advice to log validation metrics with sync_dist: ours are equal on all ranks."""
    warnings.filterwarnings("ignore", r".*recommended to use `self.log\('(val|test)/.*sync_dist=True.*")


def has_active_sync_batchnorm(module: nn.Module) -> bool:
    """Return whether a forward pass of the module waits for the other ranks."""
    return world_size() > 1 and any(isinstance(part, nn.SyncBatchNorm) and part.training for part in module.modules())


def select_logged(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are logged: all means, and `LOGGED_BY_CLASS` of those by class (`val/METRIC/CLASS`).

    A data set may have many classes; the task's `metrics` holds all values.
    """
    return {
        key: value
        for key, value in metrics.items()
        if key.count("/") == 1 or key.removeprefix("val/").startswith(LOGGED_BY_CLASS)
    }


def seed_global_draws(batch: Batch) -> None:
    """Seed the global generators of Python, numpy and torch from the seeds of the batch's images.

    Our own draws take a generator, but detectors of other libraries sample proposals and drop features with the global
    ones. With these seeds a resumed training draws what an uninterrupted one draws, although checkpoints hold no generator
    state, and each rank draws for its own images.
    """
    state = np.random.SeedSequence(batch.seeds).generate_state(2, np.uint32)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))  # noqa: NPY002  (other libraries use the global generator)
    torch.manual_seed(int(state[0]) << 32 | int(state[1]))
