"""Records that the parts of the library exchange: batches, targets, detections, feature pyramids, regions, predictions.

Axes: b images, n objects, r regions, H W input pixels, h w feature cells, H0 W0 pixels of the original image.

Boxes are xyxy in absolute pixels of the network input. Labels are 1..num_classes-1 and 0 is background. Class maps
have -1 where the class is unknown, because 255 can be a class.
Images are RGB float in 0..1 and not normalized: normalization belongs to the detector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing.context import get_spawning_popen
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, Integer, UInt8
from torch import Tensor

from dasnet_lightning.shared_memory import pack, unpack

IGNORE_INDEX = 255  # in labels of regions, which are 0, 1 or unknown
VOID = -1  # in class maps

Images = Float[Tensor, "b 3 H W"]
Boxes = Float[Tensor, "n 4"]
Labels = Int64[Tensor, " n"]
Loss = Float[Tensor, ""]

Record = TypeVar("Record")


def map_tensors(record: Record, function: Any) -> Record:
    """Return a copy of a record with `function` applied to every tensor, also in tuples and nested records."""

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, tuple):
            return tuple(convert(item) for item in value)
        return map_tensors(value, function) if hasattr(value, "__dataclass_fields__") else value

    return replace(record, **{field.name: convert(getattr(record, field.name)) for field in fields(record)})  # type: ignore[type-var, arg-type]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Ground truth of one image for evaluation, in the H0 x W0 pixels of the original image.

    Attributes:
        semantic: class map (int16 from our datasets), 0 for background and VOID for unknown pixels.
        masks: COCO's compressed run-length counts for each object of the target, in its order; None for an object
            without a mask.
        void: run-length counts of the pixels that no metric may read (VOC's 255), or None if the format has none.
    """

    semantic: Integer[Tensor, "H0 W0"]
    masks: tuple[bytes | None, ...]
    void: bytes | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """Labels of one image. A missing mask is missing, never empty: read `masks[i]` only where `has_mask[i]`.

    Attributes:
        boxes: xyxy in pixels of the network input.
        labels: classes of the objects, 1..num_classes-1.
        has_mask: which objects have a mask.
        ignore: crowd and difficult objects. They are neither positives nor negatives in training and do not count in
            evaluation.
        masks: one mask for each object, or None if the image has none.
        void: pixels that no loss may read.
        truth: ground truth for evaluation; None in training and for images whose masks are unknown.
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
    """Images of one size with their targets.

    Attributes:
        image_ids: one id for each image.
        images: RGB in 0..1, not normalized.
        targets: one target for each image.
        seeds: one seed for each image, from which all its random draws come.
        sizes: (height, width) of each image before it was resized; empty if unknown.
    """

    image_ids: tuple[str, ...]
    images: Float[Tensor, "b 3 H W"]
    targets: tuple[Target, ...]
    seeds: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def generators(self) -> tuple[torch.Generator, ...]:
        """Return a new CPU generator for each image, seeded with its seed, for all random draws of a step."""
        return tuple(torch.Generator().manual_seed(seed) for seed in self.seeds)

    def select(self, indices: Sequence[int]) -> "Batch":
        """Return the batch of the images at these indices."""
        return Batch(
            image_ids=tuple(self.image_ids[index] for index in indices),
            images=self.images[list(indices)],
            targets=tuple(self.targets[index] for index in indices),
            seeds=tuple(self.seeds[index] for index in indices),
            sizes=tuple(self.sizes[index] for index in indices) if self.sizes else (),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return map_tensors(self, lambda tensor: tensor.pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a CPU batch as one block of shared memory, and any other batch tensor by tensor.

        The arguments of a process that is being spawned are sent after pickling, when nothing keeps the block alive.
        """
        if self.images.device.type == "cpu" and get_spawning_popen() is None:
            return unpack, pack(self)
        return Batch, (self.image_ids, self.images, self.targets, self.seeds, self.sizes)


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of one image, sorted by descending score."""

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Instance masks and class map of one image, at the output size that the caller requested.

    Attributes:
        detections: the segmented detections, boxes in input pixels, with the scores that rank the masks.
        masks: one mask for each detection; `masks[i]` lies inside box i.
        semantic: the class of each pixel, 0 for background.
    """

    detections: Detections
    masks: Bool[Tensor, "n H0 W0"]
    semantic: Int64[Tensor, "H0 W0"]


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Feature maps of a batch of images.

    Attributes:
        levels: feature maps (b, c, h, w), finest first.
        strides: the stride of each level in input pixels.
        size: (H, W) of the input images.
        switches: max-pooling switches of the encoder, finest first (`functional.pooling`), or None if it has none.
    """

    levels: tuple[Float[Tensor, "_ _ _ _"], ...]
    strides: tuple[int, ...]
    size: tuple[int, int]
    switches: tuple[UInt8[Tensor, "_ _ _ _"], ...] | None = None


@dataclass(frozen=True, eq=False)
class Regions:
    """The r inputs of the decoder, each with one image, one class, and one or more boxes.

    `boxes[i]` belongs to region `region_index[i]`. Region j lies in image `image_index[j]` and has class `labels[j]`.
    """

    boxes: Float[Tensor, "n 4"]
    region_index: Int64[Tensor, " n"]
    image_index: Int64[Tensor, " r"]
    labels: Int64[Tensor, " r"]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, start: int, stop: int) -> "Regions":
        """Return regions start..stop-1, renumbered from 0."""
        selected = (self.region_index >= start) & (self.region_index < stop)
        return Regions(
            boxes=self.boxes[selected],
            region_index=self.region_index[selected] - start,
            image_index=self.image_index[start:stop],
            labels=self.labels[start:stop],
        )
