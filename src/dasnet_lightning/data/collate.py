"""From the items of a dataset to the Batch that tasks read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from dasnet_lightning.types import Batch, Target


@dataclass(frozen=True, eq=False)
class Sample:
    """One item of a dataset. `image` is RGB, in any memory order; `seed` is where all random draws for it come from."""

    image_id: str
    image: UInt8[Tensor, "3 H W"]
    target: Target
    seed: int


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
