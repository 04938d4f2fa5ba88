"""Training boxes of a decoder of boxes, and the labels of the cells of their grids."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dasnet_lightning.functional.box_grids import box_windows_of, sample_masks
from dasnet_lightning.types import Regions, Target

MAX_OBJECTS = 8  # of an image in a step; a crowd would slow the step down
JITTERED_SHARE = 0.5  # of the boxes
MIN_SIDE = 1.0  # pixels


@dataclass(frozen=True, eq=False)
class ShapeSamples:
    """The n training boxes of a batch, each a region of its own.

    Attributes:
        regions: the boxes, some of them jittered.
        objects: index of the object of each box in the target of its image.
    """

    regions: Regions
    objects: Int64[Tensor, " n"]


def draw_shapes(
    targets: Sequence[Target], generators: Sequence[torch.Generator], size: tuple[int, int], jitter: float
) -> ShapeSamples:
    """Draw the objects with a mask of a training step, at most `MAX_OBJECTS` of each image, and jitter half of the boxes.

    Args:
        targets: the targets of each image.
        generators: source of all random draws of each image, on the CPU.
        size: (H, W) of the images.
        jitter: each side of a jittered box moves by up to this share of the extent of the box. Detected boxes are not
            exact, and inference should not meet them unprepared.
    """
    boxes, labels, objects, images = [], [], [], []
    for image, (target, generator) in enumerate(zip(targets, generators, strict=True)):
        candidates = torch.nonzero(target.has_mask.cpu() & ~target.ignore.cpu())[:, 0]
        drawn = candidates[torch.randperm(len(candidates), generator=generator)[:MAX_OBJECTS].sort().values]
        drawn = drawn.to(target.labels.device)
        boxes.append(_jitter(target.boxes[drawn], size, jitter, generator))
        labels.append(target.labels[drawn])
        objects.append(drawn)
        images.append(torch.full_like(drawn, image))
    return ShapeSamples(
        Regions(
            boxes=torch.cat(boxes),
            region_index=torch.arange(sum(map(len, labels)), device=targets[0].boxes.device),
            image_index=torch.cat(images),
            labels=torch.cat(labels),
        ),
        torch.cat(objects),
    )


def _jitter(
    boxes: Float[Tensor, "n 4"], size: tuple[int, int], jitter: float, generator: torch.Generator
) -> Float[Tensor, "n 4"]:
    """Move the sides of `JITTERED_SHARE` of the boxes; the result lies in the image and is at least one pixel wide."""
    chosen = torch.rand(len(boxes), 1, generator=generator) < JITTERED_SHARE
    shift = (torch.rand(len(boxes), 4, generator=generator) * 2 - 1) * jitter * chosen
    extent = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + shift.to(boxes) * extent
    limit = boxes.new_tensor([size[1], size[0]])
    low = torch.minimum(moved[:, :2].clamp(min=0), limit - MIN_SIDE)
    moved = torch.cat([low, torch.maximum(torch.minimum(moved[:, 2:], limit), low + MIN_SIDE)], dim=1)
    return torch.where(shift.any(dim=1, keepdim=True).to(boxes.device), moved, boxes)


def shape_labels(
    targets: Sequence[Target], samples: ShapeSamples, size: tuple[int, int], cells: int, margin: float
) -> tuple[Bool[Tensor, "n g g"], Bool[Tensor, "n g g"]]:
    """Label the cells of the grid of each box.

    Args:
        targets: the targets of each image.
        samples: the boxes; their objects have masks.
        size: (H, W) of the images.
        cells: g, cells along each side of the grids.
        margin: see `functional.box_grids.box_windows_of`.

    Returns:
        Whether a cell belongs to the object, and whether it is known. Void pixels and cells beyond the image are unknown.
    """
    windows = box_windows_of(samples.regions.boxes, margin)
    inside, known = [windows.new_zeros(0, cells, cells)], [windows.new_zeros(0, cells, cells)]
    for image, target in enumerate(targets):
        chosen = samples.regions.image_index == image
        objects, of_image = samples.objects[chosen], windows[chosen]
        if not len(objects):
            continue
        assert target.masks is not None
        inside.append(sample_masks(target.masks[objects].to(windows.dtype), of_image, cells))
        valid = windows.new_ones(1, *size) if target.void is None else (~target.void)[None].to(windows.dtype)
        known.append(sample_masks(valid.expand(len(objects), -1, -1), of_image, cells))
    return torch.cat(inside) >= 0.5, torch.cat(known) >= 0.5
