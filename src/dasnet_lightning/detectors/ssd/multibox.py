"""SSD's training target and loss: which anchor stands for which object, and what the network pays for its answer.

All images of a batch are matched together over padded targets; nothing loops over anchors or images. An ignored object
(crowd, difficult) is neither a positive nor a negative. Everything is computed in float32, also under autocast.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou

from dasnet_lightning.distributed import sum_over_ranks
from dasnet_lightning.functional.boxes import covered_fraction, encode_boxes
from dasnet_lightning.functional.losses import normalize
from dasnet_lightning.types import Loss, Target

BACKGROUND = 0
NEITHER = -1


def pad_targets(
    targets: Sequence[Target],
) -> tuple[Float[Tensor, "b n 4"], Int64[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Boxes, labels and ignore flags of a batch, filled up with empty boxes of label 0; n is at least 1."""
    filler = torch.zeros(1, 4, device=targets[0].boxes.device)
    boxes = pad_sequence([*(target.boxes.float() for target in targets), filler], batch_first=True)
    labels = pad_sequence([*(target.labels for target in targets), filler[:, 0].long()], batch_first=True)
    ignore = pad_sequence([*(target.ignore for target in targets), filler[:, 0].bool()], batch_first=True)
    return boxes[:-1], labels[:-1], ignore[:-1]


def claim_best_anchors(iou: Float[Tensor, "b n a"]) -> Int64[Tensor, "b a"]:
    """The object that claims each anchor as its best, -1 for none: every object that touches an anchor gets one.

    The same as giving away the pair of highest IoU again and again, but all pairs that prefer each other go at once,
    so that the rounds are few. Of equal objects the first is served first.
    """
    free = iou.clone()
    owner = torch.full((iou.shape[0], iou.shape[2]), -1, dtype=torch.int64, device=iou.device)
    order = torch.arange(iou.shape[1], device=iou.device)
    for _ in range(iou.shape[1]):
        score, choice = free.max(dim=2)
        won = (score > 0) & (free.argmax(dim=1).gather(1, choice) == order)
        if not bool(won.any()):
            break
        image, box = won.nonzero(as_tuple=True)
        anchor = choice[image, box]
        owner[image, anchor] = box
        free[image, box] = 0
        free[image, :, anchor] = 0
    return owner


def match_anchors(
    anchors: Float[Tensor, "a 4"],
    boxes: Float[Tensor, "b n 4"],
    labels: Int64[Tensor, "b n"],
    ignore: Bool[Tensor, "b n"],
    threshold: float = 0.5,
) -> tuple[Int64[Tensor, "b a"], Int64[Tensor, "b a"]]:
    """Label of each anchor (class, 0 background, -1 neither) and the index of the object that it stands for.

    An anchor is positive where its IoU with an object exceeds `threshold`, or where it is the best one of an object.
    Anchors that lie mostly inside an ignored object are never negatives.
    """
    iou = box_iou(boxes.flatten(0, 1), anchors).view(*labels.shape, len(anchors))
    iou = iou.masked_fill(((labels == 0) | ignore)[..., None], 0)
    best, index = iou.max(dim=1)
    owner = claim_best_anchors(iou)
    index = torch.where(owner >= 0, owner, index)
    positive = (owner >= 0) | (best > threshold)
    background = torch.where(_inside_ignored(anchors, boxes, ignore), NEITHER, BACKGROUND)
    return torch.where(positive, labels.gather(1, index), background), index


def _inside_ignored(
    anchors: Float[Tensor, "a 4"], boxes: Float[Tensor, "b n 4"], ignore: Bool[Tensor, "b n"]
) -> Bool[Tensor, "b a"]:
    """Anchors with more than half of their area in an ignored object; an IoU above 0.5 with it implies that."""
    image = ignore.nonzero()[:, 0]
    covered = covered_fraction(anchors, boxes[ignore]) > 0.5
    votes = torch.zeros(len(boxes), len(anchors), device=anchors.device)
    return votes.index_add(0, image, covered.float()) > 0


def mine_negatives(
    loss: Float[Tensor, "b a"], labels: Int64[Tensor, "b a"], ratio: int = 3, minimum: int = 16
) -> Bool[Tensor, "b a"]:
    """The background anchors of highest loss: `ratio` for each positive of the image, `minimum` where it has none."""
    positives = (labels > 0).sum(dim=1, keepdim=True)
    limit = torch.where(positives > 0, positives * ratio, float(minimum))
    negative = labels == BACKGROUND
    order = loss.detach().masked_fill(~negative, -torch.inf).argsort(dim=1, descending=True)
    places = torch.arange(loss.shape[1], device=loss.device).expand_as(order)
    return negative & (torch.empty_like(order).scatter_(1, order, places) < limit)


def multibox_loss(
    logits: Float[Tensor, "b a c"],
    offsets: Float[Tensor, "b a 4"],
    anchors: Float[Tensor, "a 4"],
    targets: Sequence[Target],
    threshold: float = 0.5,
    negative_ratio: int = 3,
    min_negatives: int = 16,
) -> tuple[Loss, Loss]:
    """Classification and box loss of SSD, each summed over the batch and divided by its number of positives.

    An image without objects gives `min_negatives` negatives. They must not outweigh the rest where positives are few
    or none, so the divisor is at least the number of negatives divided by `negative_ratio`; where every image has an
    object the two are the same. Both are counted over all processes, which must all call this (functional.losses).
    """
    boxes, labels, ignore = pad_targets(targets)
    anchor_labels, index = match_anchors(anchors, boxes, labels, ignore, threshold)
    entropy = F.cross_entropy(
        logits.float().flatten(0, 1), anchor_labels.clamp(min=0).flatten(), reduction="none"
    ).view(anchor_labels.shape)
    positive = anchor_labels > 0
    negative = mine_negatives(entropy, anchor_labels, negative_ratio, min_negatives)
    positives, negatives = sum_over_ranks(torch.stack([positive.sum(), negative.sum()]))
    divisor = torch.maximum(positives, negatives / negative_ratio)

    image, anchor = positive.nonzero(as_tuple=True)
    wanted = encode_boxes(boxes[image, index[image, anchor]], anchors[anchor])
    box_loss = F.smooth_l1_loss(offsets[image, anchor].float(), wanted, reduction="sum")
    return normalize((entropy * (positive | negative)).sum(), divisor), normalize(box_loss, divisor)
