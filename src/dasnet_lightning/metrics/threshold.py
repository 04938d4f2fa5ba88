"""Which detections to believe: the score threshold with the best F1, measured on images whose boxes are known.

Softmax scores of a short training are low throughout, those of a long one high; a fixed threshold fits neither.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from dasnet_lightning.types import Detections, Target

LOWEST, HIGHEST = 0.05, 0.9


def best_score_threshold(
    detections: Sequence[Detections], targets: Sequence[Target], iou_threshold: float = 0.5
) -> float:
    """The score from which on keeping detections gives the best F1 at that IoU, in LOWEST..HIGHEST.

    A detection is right if it is the best-scored one of its class on an object that is not ignored; detections of
    ignored objects count neither way. Without any right detection the answer is HIGHEST: nothing is to be believed.
    """
    parts = [_judge(found, target, iou_threshold) for found, target in zip(detections, targets, strict=True)]
    scores, right = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    if not bool(right.any()):
        return HIGHEST
    order = scores.argsort(descending=True, stable=True)
    hits = right[order].double().cumsum(0)
    kept = torch.arange(1, len(hits) + 1, dtype=torch.float64)
    objects = sum(int((~target.ignore).sum()) for target in targets)
    best = int((2 * hits / (kept + objects)).argmax())
    return min(max(float(scores[order][best]), LOWEST), HIGHEST)


def _judge(found: Detections, target: Target, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Scores of the detections that count, and which of them are right."""
    keep = found.scores >= LOWEST
    boxes, labels, scores = found.boxes[keep].float().cpu(), found.labels[keep].cpu(), found.scores[keep].float().cpu()
    iou = box_iou(boxes, target.boxes.cpu()) * (labels[:, None] == target.labels.cpu()[None])
    free = torch.ones(len(target.labels), dtype=torch.bool)
    counted, right = torch.ones_like(scores, dtype=torch.bool), torch.zeros_like(scores, dtype=torch.bool)
    for index in scores.argsort(descending=True, stable=True).tolist():
        candidates = torch.where(free, iou[index], torch.zeros(()))
        if len(candidates) and float(candidates.max()) >= iou_threshold:
            match = int(candidates.argmax())
            if bool(target.ignore[match]):
                counted[index] = False
            else:
                free[match], right[index] = False, True
    return scores[counted], right[counted]
