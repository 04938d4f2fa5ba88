"""Training boxes of instance segmentation (paper section 5): around each object some that match it and some that match none.

Boxes that match nothing are what the instance score learns from: without them a box across two objects scores like one
around an object. Masks inside given boxes do without them (experiments/overlapping_pairs.py measures both).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import box_iou

from dasnet_lightning.functional.boxes import covered_fraction

MATCH_IOU = 0.5
CANDIDATES = 48  # drawn for each object and kind
NEAR = (0.3, 0.35)  # largest shift in box sizes and largest change of log size, for boxes that are to match
FAR = (1.0, 0.7)  # for boxes that are not to match
MIN_SIDE = 1.0  # pixels


@dataclass(frozen=True, eq=False)
class BoxSamples:
    """m boxes drawn around objects; `source[i]` is the object that box i was drawn around."""

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
    """Draw boxes around the objects `boxes[around]` of an image of `size` = (H, W).

    positives: of each object, IoU above 0.5 with it and with no other object more; where too few are found (a tiny box,
    one in a crowd) the object's own box serves. negatives: IoU below 0.5 with *every* box of `boxes`, at least `min_iou`
    with the object (FCIS: 0.1), and not mostly inside a box of `ignored`; fewer are returned where there is no room.
    All boxes lie inside the image and are at least a pixel wide and high. The draws come from `generator` (on the CPU)
    alone, and their number does not depend on what was found.
    """
    device, truth, around = boxes.device, boxes.float().cpu(), around.cpu()
    own = _inside(truth[around], size)
    near, far = (_jitter(own, reach, size, generator) for reach in (NEAR, FAR))
    matching = _matching(near, truth, around)
    strangers = _strangers(far, truth, around, min_iou)
    if ignored is not None and len(ignored):
        strangers &= ~(covered_fraction(far.flatten(0, 1), ignored.float().cpu()) > 0.5).any(dim=0).view_as(strangers)
    parts: list[tuple[Tensor, int, bool]] = []
    for place, source in enumerate(around.tolist()):
        found = near[place][matching[place]][:positives]
        missing = positives - len(found)
        parts.append((torch.cat([found, own[place].expand(missing, 4)]), source, True))
        parts.append((far[place][strangers[place]][:negatives], source, False))
    return BoxSamples(
        boxes=torch.cat([part for part, _, _ in parts] or [truth[:0]]).to(boxes),
        source=torch.tensor([s for part, s, _ in parts for _ in range(len(part))], dtype=torch.int64, device=device),
        positive=torch.tensor([p for part, _, p in parts for _ in range(len(part))], dtype=torch.bool, device=device),
    )


def _inside(boxes: Float[Tensor, "*n 4"], size: tuple[int, int]) -> Float[Tensor, "*n 4"]:
    """The boxes clipped to the image, and widened to a pixel where less is left."""
    limit = boxes.new_tensor([size[1], size[0]])
    low = torch.minimum(boxes[..., :2].clamp(min=0), limit - MIN_SIDE)
    high = torch.minimum(boxes[..., 2:].clamp(min=0), limit)
    return torch.cat([low, torch.maximum(high, low + MIN_SIDE)], dim=-1)


def _jitter(
    boxes: Float[Tensor, "a 4"], reach: Sequence[float], size: tuple[int, int], generator: torch.Generator
) -> Float[Tensor, "a c 4"]:
    """Candidates around each box: shifted by up to reach[0] box sizes, grown by up to exp(reach[1])."""
    shift, growth = reach
    drawn = torch.rand(len(boxes), CANDIDATES, 4, generator=generator) * 2 - 1
    extent = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = (boxes[:, :2] + boxes[:, 2:])[:, None] / 2 + drawn[..., :2] * shift * extent
    half = extent * (drawn[..., 2:] * growth).exp() / 2
    return _inside(torch.cat([centre - half, centre + half], dim=-1), size)


def _overlaps(candidates: Float[Tensor, "a c 4"], truth: Float[Tensor, "n 4"]) -> Float[Tensor, "a c n"]:
    return box_iou(candidates.flatten(0, 1), truth).unflatten(0, candidates.shape[:2])


def _matching(
    candidates: Float[Tensor, "a c 4"], truth: Float[Tensor, "n 4"], around: Int64[Tensor, " a"]
) -> Bool[Tensor, "a c"]:
    iou = _overlaps(candidates, truth)
    own = _own(iou, around)
    return (own > MATCH_IOU) & (own >= iou.amax(dim=2)) if len(truth) else own > MATCH_IOU


def _strangers(
    candidates: Float[Tensor, "a c 4"], truth: Float[Tensor, "n 4"], around: Int64[Tensor, " a"], min_iou: float
) -> Bool[Tensor, "a c"]:
    iou = _overlaps(candidates, truth)
    return (iou < MATCH_IOU).all(dim=2) & (_own(iou, around) >= min_iou)


def _own(iou: Float[Tensor, "a c n"], around: Int64[Tensor, " a"]) -> Float[Tensor, "a c"]:
    return iou.gather(2, around[:, None, None].expand(-1, iou.shape[1], 1))[:, :, 0]
