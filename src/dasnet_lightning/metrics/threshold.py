"""Choice of the score threshold with the best F1 on images with known boxes.

A fixed threshold does not work: softmax scores are low after a short training and high after a long one.
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
    """Return the score threshold with the best F1 at that IoU, in LOWEST..HIGHEST.

    A true positive is the detection with the highest score among those of its class on an object. Detections of ignored
    objects do not count. Without a true positive the threshold is HIGHEST.
    """
    matches = [
        _match_detections(image_detections, target, iou_threshold)
        for image_detections, target in zip(detections, targets, strict=True)
    ]
    scores = torch.cat([image_scores for image_scores, _ in matches])
    true_positive = torch.cat([image_matches for _, image_matches in matches])
    if not bool(true_positive.any()):
        return HIGHEST
    order = scores.argsort(descending=True, stable=True)
    num_true = true_positive[order].double().cumsum(0)
    num_kept = torch.arange(1, len(num_true) + 1, dtype=torch.float64)
    num_objects = sum(int((~target.ignore).sum()) for target in targets)
    best = int((2 * num_true / (num_kept + num_objects)).argmax())
    return min(max(float(scores[order][best]), LOWEST), HIGHEST)


def _match_detections(detections: Detections, target: Target, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Return the scores of the detections that count, and which of them are true positives."""
    keep = detections.scores >= LOWEST
    boxes, scores = detections.boxes[keep].float().cpu(), detections.scores[keep].float().cpu()
    same_class = detections.labels[keep].cpu()[:, None] == target.labels.cpu()[None]
    iou = box_iou(boxes, target.boxes.cpu()) * same_class
    unmatched = torch.ones(len(target.labels), dtype=torch.bool)
    counted, true_positive = torch.ones_like(scores, dtype=torch.bool), torch.zeros_like(scores, dtype=torch.bool)
    for index in scores.argsort(descending=True, stable=True).tolist():
        candidates = torch.where(unmatched, iou[index], torch.zeros(()))
        if len(candidates) and float(candidates.max()) >= iou_threshold:
            match = int(candidates.argmax())
            if bool(target.ignore[match]):
                counted[index] = False
            else:
                unmatched[match], true_positive[index] = False, True
    return scores[counted], true_positive[counted]
