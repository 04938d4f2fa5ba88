"""The loader of images and the processes that it starts.

From the items of a dataset to the Batch that tasks read.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from dasnet_lightning.distributed import STOP_SIGNALS
from dasnet_lightning.types import Batch, Target


@dataclass(frozen=True, eq=False)
class Sample:
    """One item of a dataset. `image` is RGB, in any memory order; `seed` is where all random draws for it come from."""

    image_id: str
    image: UInt8[Tensor, "3 H W"]
    target: Target
    seed: int


class ResumableLoader(DataLoader[Sample]):
    """A DataLoader that Lightning takes for resumable, which it is without a state: its sampler asks where to go on."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def start_worker(worker: int) -> None:
    """Prepare a loader process."""
    cv2.setNumThreads(0)  # every worker has one core
    # sent to whole process groups: the training process saves first, then ends its workers
    for stop in STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack images of one size into a Batch, as floats in 0..1."""
    images = torch.empty(len(samples), *samples[0].image.shape)
    for image, sample in zip(images, samples, strict=True):
        image.copy_(sample.image).div_(255)  # one by one: an image stays in the processor's cache
    return Batch(
        image_ids=tuple(sample.image_id for sample in samples),
        images=images,
        targets=tuple(sample.target for sample in samples),
        seeds=tuple(sample.seed for sample in samples),
    )
