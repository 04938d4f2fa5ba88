"""Samples, their collation into batches, and the DataLoader with its worker processes."""

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
    """One item of a dataset.

    Attributes:
        image_id: id of the image.
        image: RGB pixels, in any memory order.
        target: boxes, labels and masks.
        seed: seed of all random draws for this sample.
        size: (height, width) of the image before it was resized.
    """

    image_id: str
    image: UInt8[Tensor, "3 H W"]
    target: Target
    seed: int
    size: tuple[int, int]


class ResumableLoader(DataLoader[Sample]):
    """DataLoader that Lightning recognizes as resumable; its state is empty because the sampler knows where to resume."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one image size into a batch, with pixels as floats in 0..1."""
    images = torch.empty(len(samples), *samples[0].image.shape)
    for image, sample in zip(images, samples, strict=True):
        image.copy_(sample.image).div_(255)  # image by image: each stays in the CPU cache
    return Batch(
        image_ids=tuple(sample.image_id for sample in samples),
        images=images,
        targets=tuple(sample.target for sample in samples),
        seeds=tuple(sample.seed for sample in samples),
        sizes=tuple(sample.size for sample in samples),
    )


def start_worker(worker: int) -> None:
    """Initialize a loader process: one OpenCV thread, and stop signals left to the training process."""
    cv2.setNumThreads(0)
    # stop signals reach the whole process group: the training process saves first, then ends its workers
    for stop in STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)
