"""SSD's matching of anchors to objects, hard negative mining and loss.

All images of a batch are matched together over padded targets, without loops over anchors or images. An ignored object
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
IGNORED = -1  # neither positive nor negative


def pad_targets(
    targets: Sequence[Target],
) -> tuple[Float[Tensor, "b n 4"], Int64[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Return the boxes, labels and ignore flags of a batch, padded with empty boxes of label 0; n is at least 1."""
    padding = torch.zeros(1, 4, device=targets[0].boxes.device)
    boxes = pad_sequence([*(target.boxes.float() for target in targets), padding], batch_first=True)
    labels = pad_sequence([*(target.labels for target in targets), padding[:, 0].long()], batch_first=True)
    ignore = pad_sequence([*(target.ignore for target in targets), padding[:, 0].bool()], batch_first=True)
    return boxes[:-1], labels[:-1], ignore[:-1]


def claim_best_anchors(iou: Float[Tensor, "b n a"]) -> Int64[Tensor, "b a"]:
    """Assign to each object its best anchor and return the object of each anchor, -1 for none.

    The result is that of repeatedly assigning the pair of highest IoU. To need few rounds, all pairs that prefer each other
    are assigned at once. Every object that overlaps an anchor gets one; of equal objects the first has precedence.
    """
    remaining = iou.clone()
    owner = torch.full((iou.shape[0], iou.shape[2]), -1, dtype=torch.int64, device=iou.device)
    order = torch.arange(iou.shape[1], device=iou.device)
    for _ in range(iou.shape[1]):
        score, best_anchor = remaining.max(dim=2)
        mutual = (score > 0) & (remaining.argmax(dim=1).gather(1, best_anchor) == order)
        if not bool(mutual.any()):
            break
        image, box = mutual.nonzero(as_tuple=True)
        anchor = best_anchor[image, box]
        owner[image, anchor] = box
        remaining[image, box] = 0
        remaining[image, :, anchor] = 0
    return owner


def match_anchors(
    anchors: Float[Tensor, "a 4"],
    boxes: Float[Tensor, "b n 4"],
    labels: Int64[Tensor, "b n"],
    ignore: Bool[Tensor, "b n"],
    threshold: float = 0.5,
) -> tuple[Int64[Tensor, "b a"], Int64[Tensor, "b a"]]:
    """Match anchors to objects.

    An anchor is positive if its IoU with an object exceeds `threshold` or if it is the best anchor of an object. An anchor
    mostly inside an ignored object is never a negative.

    Args:
        anchors: the anchors, xyxy in pixels.
        boxes: padded boxes of each image.
        labels: their labels, 0 for padding.
        ignore: their ignore flags.
        threshold: IoU above which an anchor is positive.

    Returns:
        The label of each anchor (class, 0 background, -1 ignored) and the index of its object.
    """
    iou = box_iou(boxes.flatten(0, 1), anchors).view(*labels.shape, len(anchors))
    iou = iou.masked_fill(((labels == 0) | ignore)[..., None], 0)
    best, index = iou.max(dim=1)
    owner = claim_best_anchors(iou)
    index = torch.where(owner >= 0, owner, index)
    positive = (owner >= 0) | (best > threshold)
    background = torch.where(_inside_ignored(anchors, boxes, ignore), IGNORED, BACKGROUND)
    return torch.where(positive, labels.gather(1, index), background), index


def _inside_ignored(
    anchors: Float[Tensor, "a 4"], boxes: Float[Tensor, "b n 4"], ignore: Bool[Tensor, "b n"]
) -> Bool[Tensor, "b a"]:
    """Mark anchors with more than half of their area in an ignored object; an IoU above 0.5 implies this."""
    image = ignore.nonzero()[:, 0]
    covered = covered_fraction(anchors, boxes[ignore]) > 0.5
    counts = torch.zeros(len(boxes), len(anchors), device=anchors.device)
    return counts.index_add(0, image, covered.float()) > 0


def mine_negatives(
    loss: Float[Tensor, "b a"], labels: Int64[Tensor, "b a"], ratio: int = 3, minimum: int = 16
) -> Bool[Tensor, "b a"]:
    """Mark the background anchors of highest loss: `ratio` per positive of an image, `minimum` if it has none."""
    positives = (labels > 0).sum(dim=1, keepdim=True)
    limit = torch.where(positives > 0, positives * ratio, float(minimum))
    negative = labels == BACKGROUND
    order = loss.detach().masked_fill(~negative, -torch.inf).argsort(dim=1, descending=True)
    positions = torch.arange(loss.shape[1], device=loss.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, positions)
    return negative & (rank < limit)


def classification_losses(
    logits: Float[Tensor, "b a c"], labels: Int64[Tensor, "b a"], sigmoid: bool
) -> Float[Tensor, "b a"]:
    """Compute the classification loss of each anchor, as a softmax or as the sum of one sigmoid for each class."""
    if sigmoid:
        expected = F.one_hot(labels, logits.shape[2]).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, expected, reduction="none").sum(dim=2)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


def multibox_loss(
    logits: Float[Tensor, "b a c"],
    offsets: Float[Tensor, "b a 4"],
    anchors: Float[Tensor, "a 4"],
    targets: Sequence[Target],
    threshold: float = 0.5,
    negative_ratio: int = 3,
    min_negatives: int = 16,
    sigmoid: bool = False,
) -> tuple[Loss, Loss]:
    """Compute the classification and the box loss of SSD, summed over the batch and divided by the number of positives.

    An image without objects has `min_negatives` negatives. So that they do not dominate a batch with few positives, the
    divisor is at least the number of negatives divided by `negative_ratio`. If every image has an object, the two are equal.
    Positives and negatives are counted over all ranks, so every rank must call this (functional.losses).

    Args:
        logits: class logits of each anchor.
        offsets: box offsets of each anchor.
        anchors: the anchors, xyxy in pixels.
        targets: the targets of each image.
        threshold: IoU above which an anchor is positive.
        negative_ratio: negatives per positive.
        min_negatives: negatives of an image without positives.
        sigmoid: sum the binary cross-entropies of all classes, background included, instead of a softmax over them.
    """
    boxes, labels, ignore = pad_targets(targets)
    anchor_labels, index = match_anchors(anchors, boxes, labels, ignore, threshold)
    entropy = classification_losses(logits.float(), anchor_labels.clamp(min=0), sigmoid)
    positive = anchor_labels > 0
    negative = mine_negatives(entropy, anchor_labels, negative_ratio, min_negatives)
    positives, negatives = sum_over_ranks(torch.stack([positive.sum(), negative.sum()]))
    divisor = torch.maximum(positives, negatives / negative_ratio)

    image, anchor = positive.nonzero(as_tuple=True)
    box_targets = encode_boxes(boxes[image, index[image, anchor]], anchors[anchor])
    box_loss = F.smooth_l1_loss(offsets[image, anchor].float(), box_targets, reduction="sum")
    return normalize((entropy * (positive | negative)).sum(), divisor), normalize(box_loss, divisor)
