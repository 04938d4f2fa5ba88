"""What a task does for the other processes of a training; nothing where there is one.

Which of a validation's figures go to the log; all of them stay in the task's `figures`.

What draws from the global generators draws from the batch: a step's randomness depends on its images alone.
"""

import random
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dasnet_lightning.distributed import sum_over_ranks, world_size
from dasnet_lightning.types import Batch


def average_values(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averages over all processes, detached, in one exchange: what is logged is the same everywhere."""
    together = torch.stack([value.detach().float() for value in values.values()])
    return dict(zip(values, sum_over_ranks(together) / world_size(), strict=True))


def silence_sync_dist_warning() -> None:
    """Lightning advises to average what is logged after a validation; our figures are the same on all processes."""
    warnings.filterwarnings("ignore", r".*recommended to use `self.log\('(val|test)/.*sync_dist=True.*")


def has_active_sync_batchnorm(module: nn.Module) -> bool:
    """Whether a forward of the module waits for that of the other processes."""
    return world_size() > 1 and any(isinstance(part, nn.SyncBatchNorm) and part.training for part in module.modules())


LOGGED_BY_CLASS = ("iou", "apr50_area", "box_ap50")


def select_logged(figures: Mapping[str, float]) -> dict[str, float]:
    """All means, and of the figures by class (`val/FIGURE/CLASS`) the few that say most: sets may have many classes."""
    return {
        key: value
        for key, value in figures.items()
        if key.count("/") == 1 or key.removeprefix("val/").startswith(LOGGED_BY_CLASS)
    }


def seed_global_draws(batch: Batch) -> None:
    """Seed the global generators of Python, numpy and torch from the seeds of the batch's images.

    Our own draws take a generator. Detectors of other libraries sample proposals and drop features from the global ones;
    seeded like this, a training that is continued in the middle draws what it would have drawn, with no generator's
    state in the checkpoint, and each process draws for its own images.
    """
    state = np.random.SeedSequence(batch.seeds).generate_state(2, np.uint32)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))  # noqa: NPY002  (the global generator is what others use)
    torch.manual_seed(int(state[0]) << 32 | int(state[1]))
