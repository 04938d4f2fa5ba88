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
    """How the training boxes are drawn and read.

    positives, negatives: boxes around each object that match it, and that match nothing. min_iou: negatives have at
    least this IoU with the object (FCIS: 0.1). pixels: at most so many rows and columns of a box are read in a step,
    drawn anew each time; None reads every pixel, which costs the more the larger the boxes are.
    """

    positives: int = 2
    negatives: int = 4
    min_iou: float = 0.0
    pixels: int | None = 40


@dataclass(frozen=True, eq=False)
class InstanceSamples:
    """m training boxes in r regions: `labels` says of each read pixel 1 its object, 0 something else, 255 unknown.

    The labels of negatives, and of boxes whose object has no mask, are 255 throughout.
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
    """Draw the training boxes around the objects `drawn[i]` of image i, in images of `size` = (H, W).

    The images with drawn objects are the regions, in their order.
    """
    images = [image for image, chosen in enumerate(drawn) if len(chosen)]
    boxes = [_sample(targets[image], drawn[image], generators[image], size, options) for image in images]
    offsets = [torch.rand(len(part.boxes), 2, generator=generators[i]) for i, part in zip(images, boxes, strict=True)]
    device = targets[0].boxes.device
    nothing = torch.zeros(0, 4, device=device)
    all_boxes = torch.cat([nothing, *(part.boxes for part in boxes)])
    grid = pixel_grid(all_boxes, size, options.pixels, torch.cat([torch.zeros(0, 2), *offsets]).to(device))
    labels = torch.full(grid.valid.shape, IGNORE_INDEX, dtype=torch.int64, device=device)
    first = 0
    for image, part in zip(images, boxes, strict=True):
        stop = first + len(part.boxes)
        place = slice(first, stop)
        labels[place] = _pixel_labels(targets[image], part, grid.rows[place], grid.columns[place])
        first = stop
    counts = torch.tensor([len(part.boxes) for part in boxes], dtype=torch.int64, device=device)
    return InstanceSamples(
        boxes=all_boxes,
        region_index=torch.repeat_interleave(torch.arange(len(boxes), device=device), counts),
        positive=torch.cat([nothing[:, 0].bool(), *(part.positive for part in boxes)]),
        grid=grid,
        labels=labels.masked_fill(~grid.valid, IGNORE_INDEX),
    )


def _sample(
    target: Target, chosen: Int64[Tensor, " a"], generator: torch.Generator, size: tuple[int, int], o: SamplingOptions
) -> BoxSamples:
    crowd = target.boxes[target.ignore]
    return sample_boxes(target.boxes, chosen, size, generator, o.positives, o.negatives, o.min_iou, crowd)


def _pixel_labels(
    target: Target, samples: BoxSamples, rows: Int64[Tensor, "m g"], columns: Int64[Tensor, "m g2"]
) -> Int64[Tensor, "m g g2"]:
    """The mask of each positive's object at the pixels that are read."""
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
