"""Regions, the units of decoding: boxes grouped by class for semantic, one by one for instance segmentation.

Also the choice of the boxes: detections above a score, or ground-truth objects drawn for a training step with the labels
of their pixels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from dasnet_lightning.functional.attention import box_attention
from dasnet_lightning.types import IGNORE_INDEX, Detections, Regions, Target


def regions_by_class(detections: Sequence[Detections]) -> Regions:
    """Group the detections into one region for each image and class; ordered by image, then label."""
    image_of_box = _image_index(detections)
    labels = torch.cat([item.labels for item in detections])
    pairs, region_index = torch.unique(torch.stack([image_of_box, labels], dim=1), dim=0, return_inverse=True)
    return Regions(
        boxes=torch.cat([item.boxes for item in detections]),
        region_index=region_index.reshape(-1),
        image_index=pairs[:, 0].contiguous(),
        labels=pairs[:, 1].contiguous(),
    )


def regions_by_instance(detections: Sequence[Detections]) -> Regions:
    """Make one region of each detection, in their order."""
    labels = torch.cat([item.labels for item in detections])
    return Regions(
        boxes=torch.cat([item.boxes for item in detections]),
        region_index=torch.arange(len(labels), device=labels.device),
        image_index=_image_index(detections),
        labels=labels,
    )


def ground_truth_detections(target: Target) -> Detections:
    """Return the annotated boxes as detections of score 1, without crowd and difficult objects."""
    keep = ~target.ignore
    return Detections(target.boxes[keep], target.labels[keep], torch.ones_like(target.boxes[keep][:, 0]))


def confident_detections(detections: Detections, score_threshold: float, max_classes: int) -> Detections:
    """Select the detections with at least this score, of the `max_classes` best-scored classes (paper section 4)."""
    keep = detections.scores >= score_threshold
    boxes, labels, scores = detections.boxes[keep], detections.labels[keep], detections.scores[keep]
    best_first = labels[torch.argsort(scores, descending=True, stable=True)]
    classes = list(dict.fromkeys(best_first.tolist()))[:max_classes]
    allowed = torch.isin(labels, torch.tensor(classes, dtype=labels.dtype, device=labels.device))
    return Detections(boxes[allowed], labels[allowed], scores[allowed])


def best_detections(detections: Detections, score_threshold: float, max_detections: int) -> Detections:
    """Select the best `max_detections` detections with at least this score, best first."""
    order = torch.argsort(detections.scores, descending=True, stable=True)
    order = order[detections.scores[order] >= score_threshold][:max_detections]
    return Detections(detections.boxes[order], detections.labels[order], detections.scores[order])


def draw_objects(
    targets: Sequence[Target], generators: Sequence[torch.Generator], subset: bool = True, with_mask: bool = True
) -> tuple[Int64[Tensor, " _"], ...]:
    """Draw the objects of a training step: a class of each image and objects of this class (paper section 4).

    Args:
        targets: the targets of each image.
        generators: source of all random draws of each image, on the CPU.
        subset: draw a random non-empty subset of the objects of the class; False takes all of them.
        with_mask: draw only objects that have a mask.

    Returns:
        For each image the indices of the objects in its target; empty if the image has none to draw.
    """
    return tuple(
        _draw(target, generator, subset, with_mask) for target, generator in zip(targets, generators, strict=True)
    )


def object_regions(targets: Sequence[Target], drawn: Sequence[Int64[Tensor, " _"]]) -> Regions:
    """Make one region of the drawn objects of each image, which are of one class; images without objects have none."""
    objects = [(target.boxes[index], target.labels[index]) for target, index in zip(targets, drawn, strict=True)]
    return regions_by_class([Detections(boxes, labels, torch.ones_like(boxes[:, 0])) for boxes, labels in objects])


def region_labels(targets: Sequence[Target], regions: Regions, size: tuple[int, int]) -> Int64[Tensor, "r H W"]:
    """Label each pixel of a region: 1 for its class, 0 for anything else, 255 if unknown or outside the region's boxes.

    A pixel inside the box of an object without a mask is unknown, unless the mask of another object of the class covers
    it. Void pixels and crowd objects are unknown too.
    """
    inside = box_attention(regions.boxes, regions.region_index, len(regions), size, size) > 0
    labels = torch.zeros_like(inside, dtype=torch.int64)
    for region, (image, label) in enumerate(zip(regions.image_index.tolist(), regions.labels.tolist(), strict=True)):
        labels[region] = _class_labels(targets[image], label, size)
    return labels.masked_fill(~inside, IGNORE_INDEX)


def _class_labels(target: Target, label: int, size: tuple[int, int]) -> Int64[Tensor, "H W"]:
    of_class = target.labels == label
    with_mask = of_class & target.has_mask & ~target.ignore
    without_mask = of_class & ~with_mask
    labels = torch.zeros(size, dtype=torch.int64, device=target.labels.device)
    if without_mask.any():
        boxes = target.boxes[without_mask]
        index = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        labels[box_attention(boxes, index, 1, size, size)[0] > 0] = IGNORE_INDEX
    if target.masks is not None:
        labels[target.masks[with_mask].any(dim=0)] = 1
    if target.void is not None:
        labels[target.void] = IGNORE_INDEX
    return labels


def _draw(target: Target, generator: torch.Generator, subset: bool, with_mask: bool) -> Int64[Tensor, " _"]:
    labels, usable = target.labels.cpu(), ~target.ignore.cpu()
    if with_mask:
        usable &= target.has_mask.cpu()
    classes = torch.unique(labels[usable])
    if not len(classes):
        return target.labels.new_zeros(0)
    label = classes[torch.randint(len(classes), (1,), generator=generator)]
    candidates = torch.nonzero(usable & (labels == label)).reshape(-1)
    count = len(candidates)
    if subset:
        count = int(torch.randint(1, count + 1, (1,), generator=generator))
    order = torch.randperm(len(candidates), generator=generator)[:count]
    return candidates[order.sort().values].to(target.labels.device)


def _image_index(detections: Sequence[Detections]) -> Int64[Tensor, " n"]:
    counts = [len(item.labels) for item in detections]
    index = [torch.full_like(item.labels, image) for image, item in enumerate(detections)]
    return torch.cat(index) if counts else torch.zeros(0, dtype=torch.int64)
