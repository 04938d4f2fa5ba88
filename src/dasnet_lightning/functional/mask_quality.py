"""Estimate of the quality of a mask from its own probabilities, without training."""

import torch
from jaxtyping import Float
from torch import Tensor


def soft_dice_confidence(probs: Float[Tensor, "n g g2"]) -> Float[Tensor, " n"]:
    """Compute the Soft Dice Confidence 2 * sum(p y) / (sum(p) + sum(y)) with y = p > 0.5; 0 for an empty mask."""
    mask = (probs > 0.5).to(probs.dtype)
    overlap, total = (probs * mask).sum(dim=(1, 2)), (probs + mask).sum(dim=(1, 2))
    return torch.where(mask.any(dim=2).any(dim=1), 2 * overlap / total.clamp(min=1e-6), torch.zeros_like(total))


def estimate_iou(probs: Float[Tensor, "n g g2"]) -> Float[Tensor, " n"]:
    """Estimate the IoU of each mask with the truth as D / (2 - D), with the Soft Dice Confidence D."""
    dice = soft_dice_confidence(probs)
    return dice / (2 - dice)
