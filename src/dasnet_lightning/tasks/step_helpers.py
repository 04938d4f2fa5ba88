"""Helpers of the tasks' training and validation steps: averages over ranks, logged metrics, seeds of the global generators."""

import random
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.distributed import sum_over_ranks, world_size
from dasnet_lightning.models.box_scores import Refinement
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.types import Batch, Images, Pyramid

LOGGED_BY_CLASS = ("iou", "apr50_area", "box_ap50")


def average_values(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return scalars averaged over all ranks, detached, with a single all-reduce."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    return dict(zip(values, sum_over_ranks(stacked) / world_size(), strict=True))


def silence_warnings() -> None:
    """Silence two warnings of Lightning that do not apply.

    Validation metrics need no sync_dist, because ours are equal on all ranks. A frozen detector is in evaluation mode on
    purpose.
    """
    warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training.*")
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


def build_refinement(
    options: SemanticOptions | InstanceOptions,
    features: Callable[[Images], Pyramid],
    images: Images,
    sizes: Sequence[tuple[int, int]],
) -> Refinement:
    """Return what the options of inference ask for: features of the mirrored images, and guides.

    The guides are the input images, resized to the (H0, W0) of the masks in `sizes`.
    """
    guides = None
    if options.guided_filter:
        resized = [
            F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
            for image, size in zip(images, sizes, strict=True)
        ]
        guides = [(image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0) for image in resized]
    return Refinement(features(images.flip(3)) if options.flip else None, guides)


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
