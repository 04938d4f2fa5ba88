"""The records that travel between the parts of the library.

Axes: b images, n objects, r regions, H W input pixels, h w feature cells, H0 W0 pixels of the original image. Boxes are
xyxy in absolute pixels of the network input; labels are 1..num_classes-1, 0 is background and 255 is ignored. Images are
RGB float 0..1, un-normalised: normalisation belongs to the detector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing.context import get_spawning_popen
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from dasnet_lightning.shared_memory import pack, unpack

IGNORE_INDEX = 255

Images = Float[Tensor, "b 3 H W"]
Boxes = Float[Tensor, "n 4"]
Labels = Int64[Tensor, " n"]
Loss = Float[Tensor, ""]

Record = TypeVar("Record")


def map_tensors(record: Record, function: Any) -> Record:
    """Return a copy of a record with `function` applied to every tensor field, also inside tuples."""

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, tuple):
            return tuple(convert(item) for item in value)
        return map_tensors(value, function) if hasattr(value, "__dataclass_fields__") else value

    return replace(record, **{field.name: convert(getattr(record, field.name)) for field in fields(record)})  # type: ignore[type-var, arg-type]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What evaluation compares with, in the original image's H0 x W0 pixels; filled for evaluation only.

    `semantic` is the class map: 0 background, 255 where the truth is not known. `masks` are COCO's compressed run-length
    counts of each object of the target, in its order; None where the object has no mask. `void` are the counts of the
    pixels that no metric may read (VOC's 255), None where the format has none.
    """

    semantic: UInt8[Tensor, "H0 W0"]
    masks: tuple[bytes | None, ...]
    void: bytes | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """The labels of one image. A missing mask is missing, never empty: read `masks[i]` only where `has_mask[i]`.

    `ignore` marks crowd and difficult objects: neither positives nor negatives in training, not counted in evaluation.
    `void` marks pixels that no loss may read. `truth` is filled for evaluation only, and only where the image's masks are
    known.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    has_mask: Bool[Tensor, " n"]
    ignore: Bool[Tensor, " n"]
    masks: Bool[Tensor, "n H W"] | None = None
    void: Bool[Tensor, "H W"] | None = None
    truth: GroundTruth | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size with their targets; `seeds` holds one number per image from which all its random draws come."""

    image_ids: tuple[str, ...]
    images: Float[Tensor, "b 3 H W"]
    targets: tuple[Target, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def generators(self) -> tuple[torch.Generator, ...]:
        """A fresh generator on the CPU for each image, from its seed: all random draws of a step come from these."""
        return tuple(torch.Generator().manual_seed(seed) for seed in self.seeds)

    def select(self, indices: Sequence[int]) -> "Batch":
        """The images at these places."""
        return Batch(
            image_ids=tuple(self.image_ids[index] for index in indices),
            images=self.images[list(indices)],
            targets=tuple(self.targets[index] for index in indices),
            seeds=tuple(self.seeds[index] for index in indices),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return map_tensors(self, lambda tensor: tensor.pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes as one block of memory; on a GPU, or to a process that is just started, as torch does it.

        What a new process is given is sent after it was pickled, when nothing holds the block any more.
        """
        if self.images.device.type == "cpu" and get_spawning_popen() is None:
            return unpack, pack(self)
        return Batch, (self.image_ids, self.images, self.targets, self.seeds)


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one image, best score first."""

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The segmented objects of one image, and its class map, at the size that was asked for.

    Attributes:
        detections: the detections that were segmented, boxes in input pixels, with the scores that rank the masks.
        masks: one mask for each detection; `masks[i]` never leaves box i.
        semantic: the class of each pixel, 0 for background.
    """

    detections: Detections
    masks: Bool[Tensor, "n H0 W0"]
    semantic: Int64[Tensor, "H0 W0"]


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Feature maps, finest level first, of images of `size` = (H, W).

    `switches` are the max-pooling switches of the encoder, finest first (functional.pooling), or None where the encoder
    has none.
    """

    levels: tuple[Float[Tensor, "_ _ _ _"], ...]
    strides: tuple[int, ...]
    size: tuple[int, int]
    switches: tuple[UInt8[Tensor, "_ _ _ _"], ...] | None = None


@dataclass(frozen=True, eq=False)
class Regions:
    """What the decoder looks at: r regions, each one image, one class, and one or more boxes.

    `boxes[i]` belongs to region `region_index[i]`; region j lies in image `image_index[j]` and has class `labels[j]`.
    """

    boxes: Float[Tensor, "n 4"]
    region_index: Int64[Tensor, " n"]
    image_index: Int64[Tensor, " r"]
    labels: Int64[Tensor, " r"]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, start: int, stop: int) -> "Regions":
        """The regions start..stop-1, renumbered from 0."""
        inside = (self.region_index >= start) & (self.region_index < stop)
        return Regions(
            boxes=self.boxes[inside],
            region_index=self.region_index[inside] - start,
            image_index=self.image_index[start:stop],
            labels=self.labels[start:stop],
        )
