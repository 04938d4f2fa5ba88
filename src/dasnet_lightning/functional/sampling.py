"""Sampling of training boxes for instance segmentation (paper section 5): positives and negatives around each object.

The instance score learns from the negatives: without them a box across two objects scores like a box around one object.
Masks inside given boxes do not need them (experiments/overlapping_pairs.py measures both).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import box_iou

from dasnet_lightning.functional.boxes import covered_fraction

MATCH_IOU = 0.5
CANDIDATES = 48  # boxes drawn around each object, for positives and for negatives
NEAR = (0.3, 0.35)  # for positives: largest shift in box sizes, largest change of the log size
FAR = (1.0, 0.7)  # for negatives
MIN_SIDE = 1.0  # pixels


@dataclass(frozen=True, eq=False)
class BoxSamples:
    """m boxes drawn around objects.

    Attributes:
        boxes: xyxy in pixels.
        source: index of the object that each box was drawn around.
        positive: whether a box matches this object.
    """

    boxes: Float[Tensor, "m 4"]
    source: Int64[Tensor, " m"]
    positive: Bool[Tensor, " m"]


def sample_boxes(
    boxes: Float[Tensor, "n 4"],
    around: Int64[Tensor, " a"],
    size: tuple[int, int],
    generator: torch.Generator,
    positives: int = 2,
    negatives: int = 4,
    min_iou: float = 0.0,
    ignored: Float[Tensor, "i 4"] | None = None,
) -> BoxSamples:
    """Sample boxes around the objects `boxes[around]` of an image.

    All boxes lie inside the image and are at least one pixel wide and high. The number of random draws does not depend on
    the result.

    Args:
        boxes: the boxes of all objects of the image, xyxy in pixels.
        around: indices of the objects to sample around.
        size: (H, W) of the image.
        generator: source of all random draws, on the CPU.
        positives: boxes per object whose IoU with it exceeds 0.5 and is their largest with any object. If too few are
            found (for a tiny box, or in a crowd), the object's own box fills up.
        negatives: boxes per object with an IoU below 0.5 with *every* box of `boxes` and at least `min_iou` with the
            object. They do not lie mostly inside a box of `ignored`. Fewer are returned if too few are found.
        min_iou: see `negatives` (FCIS: 0.1).
        ignored: boxes of ignored objects.
    """
    device, all_boxes, around = boxes.device, boxes.float().cpu(), around.cpu()
    objects = _clip_to_image(all_boxes[around], size)
    near, far = (_jitter(objects, reach, size, generator) for reach in (NEAR, FAR))
    is_positive = _find_positives(near, all_boxes, around)
    is_negative = _find_negatives(far, all_boxes, around, min_iou)
    if ignored is not None and len(ignored):
        covered = covered_fraction(far.flatten(0, 1), ignored.float().cpu()) > 0.5
        is_negative &= ~covered.any(dim=0).view_as(is_negative)
    samples: list[tuple[Tensor, int, bool]] = []
    for index, source in enumerate(around.tolist()):
        matching = near[index][is_positive[index]][:positives]
        missing = positives - len(matching)
        samples.append((torch.cat([matching, objects[index].expand(missing, 4)]), source, True))
        samples.append((far[index][is_negative[index]][:negatives], source, False))
    sources = [source for drawn, source, _ in samples for _ in range(len(drawn))]
    labels = [positive for drawn, _, positive in samples for _ in range(len(drawn))]
    return BoxSamples(
        boxes=torch.cat([drawn for drawn, _, _ in samples] or [all_boxes[:0]]).to(boxes),
        source=torch.tensor(sources, dtype=torch.int64, device=device),
        positive=torch.tensor(labels, dtype=torch.bool, device=device),
    )


def _clip_to_image(boxes: Float[Tensor, "*n 4"], size: tuple[int, int]) -> Float[Tensor, "*n 4"]:
    """Clip boxes to the image and widen them to at least one pixel."""
    limit = boxes.new_tensor([size[1], size[0]])
    low = torch.minimum(boxes[..., :2].clamp(min=0), limit - MIN_SIDE)
    high = torch.minimum(boxes[..., 2:].clamp(min=0), limit)
    return torch.cat([low, torch.maximum(high, low + MIN_SIDE)], dim=-1)


def _jitter(
    boxes: Float[Tensor, "a 4"], reach: Sequence[float], size: tuple[int, int], generator: torch.Generator
) -> Float[Tensor, "a c 4"]:
    """Draw candidates around each box, shifted by up to reach[0] box sizes and scaled by up to exp(reach[1])."""
    shift, growth = reach
    drawn = torch.rand(len(boxes), CANDIDATES, 4, generator=generator) * 2 - 1
    extent = (boxes[:, 2:] - boxes[:, :2])[:, None]
    center = (boxes[:, :2] + boxes[:, 2:])[:, None] / 2 + drawn[..., :2] * shift * extent
    half = extent * (drawn[..., 2:] * growth).exp() / 2
    return _clip_to_image(torch.cat([center - half, center + half], dim=-1), size)


def _find_positives(
    candidates: Float[Tensor, "a c 4"], boxes: Float[Tensor, "n 4"], around: Int64[Tensor, " a"]
) -> Bool[Tensor, "a c"]:
    iou = _pairwise_iou(candidates, boxes)
    own_iou = _iou_with_own_object(iou, around)
    return (own_iou > MATCH_IOU) & (own_iou >= iou.amax(dim=2)) if len(boxes) else own_iou > MATCH_IOU


def _find_negatives(
    candidates: Float[Tensor, "a c 4"], boxes: Float[Tensor, "n 4"], around: Int64[Tensor, " a"], min_iou: float
) -> Bool[Tensor, "a c"]:
    iou = _pairwise_iou(candidates, boxes)
    return (iou < MATCH_IOU).all(dim=2) & (_iou_with_own_object(iou, around) >= min_iou)


def _pairwise_iou(candidates: Float[Tensor, "a c 4"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "a c n"]:
    return box_iou(candidates.flatten(0, 1), boxes).unflatten(0, candidates.shape[:2])


def _iou_with_own_object(iou: Float[Tensor, "a c n"], around: Int64[Tensor, " a"]) -> Float[Tensor, "a c"]:
    return iou.gather(2, around[:, None, None].expand(-1, iou.shape[1], 1))[:, :, 0]
