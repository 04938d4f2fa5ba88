"""Small layers that the detectors share, and how an image size is written."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def parse_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of one number for a square image, or of two. Raises ConfigError for anything else."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ConfigError(f"image_size is {size!r}, expected one positive number or two: height, width")
    return sides[0], sides[1]


class L2Norm(nn.Module):
    """Scale every cell's feature vector to a length that is learned for each channel (SSD's conv4_3, ParseNet)."""

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), scale))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.normalize(x.float(), dim=1) * self.scale


class FrozenBatchNorm(nn.Module):
    """BatchNorm whose statistics and scales are buffers that never move, in training or in evaluation.

    The state dict has BatchNorm2d's keys, so weights trained with either load into the other. One fused call and
    autocast's dtype, unlike torchvision's, which goes to float32 under autocast.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class LoneBatchNorm(nn.BatchNorm2d):
    """BatchNorm that takes its running statistics where a channel has one value: an image by itself, at a 1x1 level."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if input.numel() > input.shape[1]:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class PairedHead(nn.Module):
    """torchvision's two box heads of a level as one: class logits, then offsets, anchor by anchor."""

    def __init__(self, classification: nn.Module, regression: nn.Module, anchors: int) -> None:
        super().__init__()
        self.classification = classification
        self.regression = regression
        self.anchors = anchors

    def forward(self, x: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ h w"]:
        parts = [part.unflatten(1, (self.anchors, -1)) for part in (self.classification(x), self.regression(x))]
        return torch.cat(parts, dim=2).flatten(1, 2)


def reduced_head(channels: int, width: int, outputs: int, norm_groups: int) -> nn.Sequential:
    """A box head that first narrows a wide level: 1x1 to `width`, GroupNorm, then the 3x3 that predicts."""
    narrow = nn.Conv2d(channels, width, 1)
    return nn.Sequential(narrow, nn.GroupNorm(norm_groups, width), nn.ReLU(), nn.Conv2d(width, outputs, 3, padding=1))


def extra_levels(channels: int, widths: Sequence[tuple[int, int]], norm_groups: int) -> nn.ModuleList:
    """Blocks that each halve the level before: 1x1 to the narrow width, then 3x3 to the other, both with GroupNorm.

    widths: (narrow, out) of each block. The norm is of an image by itself: small batches, levels of 1x1.
    """
    inputs = (channels, *(out for _, out in widths))
    blocks = nn.ModuleList(
        nn.Sequential(
            nn.Conv2d(before, narrow, 1),
            nn.GroupNorm(norm_groups, narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(narrow, out, 3, stride=2, padding=1),
            nn.GroupNorm(norm_groups, out),
            nn.ReLU(inplace=True),
        )
        for before, (narrow, out) in zip(inputs, widths, strict=False)
    )
    init_convolutions(blocks)
    return blocks


def init_convolutions(module: nn.Module) -> None:
    """He initialisation for every convolution of a part that starts untrained, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_predictors(heads: nn.Module) -> None:
    """SSD's initialisation of the box heads: Xavier, biases 0."""
    for layer in heads.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_small(heads: nn.Module) -> None:
    """Small weights, so that a short training does not begin by unlearning confident answers; biases 0."""
    for layer in heads.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
