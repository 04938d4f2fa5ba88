"""Training boxes of instance segmentation and the labels of their pixels (paper section 5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dasnet_lightning.functional.position_sensitive import PixelGrid, pixel_grid
from dasnet_lightning.functional.sampling import BoxSamples, sample_boxes
from dasnet_lightning.types import IGNORE_INDEX, Target


@dataclass(frozen=True)
class SamplingOptions:
    """How the training boxes of instance segmentation are sampled.

    Attributes:
        positives: boxes sampled around each object that match it.
        negatives: boxes sampled around each object that match no object.
        min_iou: lowest IoU of a negative with its object (FCIS: 0.1).
        pixels: limit on the rows and on the columns of a box that a step reads, sampled anew in each step. None reads
            every pixel, which costs more the larger the boxes are.
    """

    positives: int = 2
    negatives: int = 4
    min_iou: float = 0.0
    pixels: int | None = 40


@dataclass(frozen=True, eq=False)
class InstanceSamples:
    """The m training boxes of a batch, in r regions.

    Attributes:
        boxes: the boxes in input pixels.
        region_index: the region of each box.
        positive: whether a box matches its object.
        grid: the pixels that are read in each box.
        labels: 1 for a pixel of the object, 0 for any other, 255 if unknown. The labels of negatives, and of boxes whose
            object has no mask, are all 255.
    """

    boxes: Float[Tensor, "m 4"]
    region_index: Int64[Tensor, " m"]
    positive: Bool[Tensor, " m"]
    grid: PixelGrid
    labels: Int64[Tensor, "m g g2"]


def draw_samples(
    targets: Sequence[Target],
    drawn: Sequence[Int64[Tensor, " _"]],
    generators: Sequence[torch.Generator],
    size: tuple[int, int],
    options: SamplingOptions,
) -> InstanceSamples:
    """Sample the training boxes of a batch and label their pixels.

    Args:
        targets: the targets of each image.
        drawn: indices of the objects of each image to sample around. The images that have any are the regions, in order.
        generators: source of all random draws of each image, on the CPU.
        size: (H, W) of the images.
        options: number and kind of the boxes.
    """
    images = [image for image, objects in enumerate(drawn) if len(objects)]
    samples = [_sample_image(targets[image], drawn[image], generators[image], size, options) for image in images]
    offsets = [torch.rand(len(item.boxes), 2, generator=generators[i]) for i, item in zip(images, samples, strict=True)]
    device = targets[0].boxes.device
    no_boxes = torch.zeros(0, 4, device=device)
    boxes = torch.cat([no_boxes, *(item.boxes for item in samples)])
    grid = pixel_grid(boxes, size, options.pixels, torch.cat([torch.zeros(0, 2), *offsets]).to(device))
    labels = torch.full(grid.valid.shape, IGNORE_INDEX, dtype=torch.int64, device=device)
    start = 0
    for image, item in zip(images, samples, strict=True):
        stop = start + len(item.boxes)
        labels[start:stop] = _pixel_labels(targets[image], item, grid.rows[start:stop], grid.columns[start:stop])
        start = stop
    counts = torch.tensor([len(item.boxes) for item in samples], dtype=torch.int64, device=device)
    return InstanceSamples(
        boxes=boxes,
        region_index=torch.repeat_interleave(torch.arange(len(samples), device=device), counts),
        positive=torch.cat([no_boxes[:, 0].bool(), *(item.positive for item in samples)]),
        grid=grid,
        labels=labels.masked_fill(~grid.valid, IGNORE_INDEX),
    )


def _sample_image(
    target: Target,
    objects: Int64[Tensor, " a"],
    generator: torch.Generator,
    size: tuple[int, int],
    options: SamplingOptions,
) -> BoxSamples:
    crowd = target.boxes[target.ignore]
    positives, negatives, min_iou = options.positives, options.negatives, options.min_iou
    return sample_boxes(target.boxes, objects, size, generator, positives, negatives, min_iou, crowd)


def _pixel_labels(
    target: Target, samples: BoxSamples, rows: Int64[Tensor, "m g"], columns: Int64[Tensor, "m g2"]
) -> Int64[Tensor, "m g g2"]:
    """Read the mask of each positive's object at the pixels of the grid; 255 for boxes without a known mask."""
    labels = torch.full((*rows.shape, columns.shape[1]), IGNORE_INDEX, dtype=torch.int64, device=rows.device)
    known = samples.positive & target.has_mask[samples.source]
    if target.masks is None or not bool(known.any()):
        return labels
    y, x = rows[known][:, :, None], columns[known][:, None, :]
    inside = target.masks[samples.source[known][:, None, None], y, x].long()
    if target.void is not None:
        inside = inside.masked_fill(target.void[y, x], IGNORE_INDEX)
    labels[known] = inside
    return labels
