"""The semantic loss from windows: the labels are 255 outside of the boxes, so nothing else has to be decoded in training.

The loss and its gradients are those of `semantic_loss` on whole maps: BatchNorm stands in the coarse part of a decoder,
which is decoded whole and for all regions together.
"""

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.functional.patches import Patches, resize
from dasnet_lightning.functional.reduction import LossSum
from dasnet_lightning.functional.windows import box_windows
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.semantic import score_patches
from dasnet_lightning.types import IGNORE_INDEX, Pyramid, Regions


def window_loss(model: DASNet, pyramid: Pyramid, regions: Regions, labels: Int64[Tensor, "r H W"]) -> LossSum:
    """Softmax cross-entropy over (background, foreground) of each region in input pixels, over the known labels.

    Labels outside of the boxes of their region must be 255.
    """
    left, total = labels.clone(), torch.zeros((), device=labels.device)
    windows = box_windows(regions.boxes, pyramid.size)
    for piece in model.decode_windows(pyramid, regions, [windows], len(regions)):
        logits = resize(score_patches(model.head, piece.patches), pyramid.size)
        targets = torch.zeros(len(logits.values), dtype=torch.int64)
        targets[piece.rows] = regions.region_index.cpu()[piece.numbers]
        taken = _take(left, logits, targets)
        total = total + F.cross_entropy(logits.values.float(), taken, ignore_index=IGNORE_INDEX, reduction="sum")
    return LossSum(total, (labels != IGNORE_INDEX).sum())


def _take(left: Int64[Tensor, "r H W"], logits: Patches, targets: Int64[Tensor, " m"]) -> Int64[Tensor, "m h w"]:
    """The labels of each patch, which are 255 in `left` from then on: where patches overlap, a pixel counts once."""
    taken = torch.full_like(logits.values[:, 0], IGNORE_INDEX, dtype=torch.int64)
    windows, inside = logits.windows, logits.windows.clip()
    for labels, target, (top, bottom), (first, last), (y, x) in zip(
        taken,
        targets.tolist(),
        torch.stack([inside.start[:, 0], inside.stop[:, 0]], dim=1).tolist(),
        torch.stack([inside.start[:, 1], inside.stop[:, 1]], dim=1).tolist(),
        windows.start.tolist(),
        strict=True,
    ):
        here = left[target, top:bottom, first:last]
        labels[top - y : bottom - y, first - x : last - x] = here
        here.fill_(IGNORE_INDEX)
    return taken
