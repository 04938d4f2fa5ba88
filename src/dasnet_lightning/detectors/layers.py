"""Layers, initializers and the parsing of image sizes that the detectors share."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def parse_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return the (H, W) of an image size.

    Args:
        size: the side of a square image, or height and width, in pixels.

    Raises:
        ConfigError: `size` is anything else.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ConfigError(f"image_size is {size!r}, expected one positive number or two (height, width)")
    return sides[0], sides[1]


class L2Norm(nn.Module):
    """L2 normalization of each cell with a learned scale per channel (SSD's conv4_3, ParseNet)."""

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), scale))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalize each cell."""
        return F.normalize(x.float(), dim=1) * self.scale


class FrozenBatchNorm(nn.Module):
    """BatchNorm whose statistics and scales are constant buffers, in training and in evaluation.

    The state dict has BatchNorm2d's keys, so the weights of either load into the other. It is one fused call in autocast's
    dtype; torchvision's goes to float32 under autocast.
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
        """Normalize with the constant statistics."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class LoneBatchNorm(nn.BatchNorm2d):
    """BatchNorm that uses its running statistics if a channel has a single value: one image at a 1x1 level."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalize the features."""
        if input.numel() > input.shape[1]:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class PairedHead(nn.Module):
    """torchvision's two box heads of a level as one; for each anchor the class logits, then the offsets."""

    def __init__(self, classification: nn.Module, regression: nn.Module, anchors: int) -> None:
        super().__init__()
        self.classification = classification
        self.regression = regression
        self.anchors = anchors

    def forward(self, x: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ h w"]:
        """Return anchors * (classes + 4) channels."""
        parts = [part.unflatten(1, (self.anchors, -1)) for part in (self.classification(x), self.regression(x))]
        return torch.cat(parts, dim=2).flatten(1, 2)


def reduced_head(channels: int, width: int, outputs: int, norm_groups: int) -> nn.Sequential:
    """Build a box head that narrows a wide level first: 1x1 to `width`, GroupNorm, ReLU, then a 3x3 to `outputs`."""
    narrow = nn.Conv2d(channels, width, 1)
    return nn.Sequential(narrow, nn.GroupNorm(norm_groups, width), nn.ReLU(), nn.Conv2d(width, outputs, 3, padding=1))


def extra_levels(channels: int, widths: Sequence[tuple[int, int]], norm_groups: int) -> nn.ModuleList:
    """Build blocks that each halve the resolution: a 1x1 and a strided 3x3 convolution, both with GroupNorm.

    GroupNorm works on each image alone, so small batches and levels of 1x1 are possible.

    Args:
        channels: channels of the first block's input.
        widths: channels of each block after the 1x1 and after the 3x3 convolution.
        norm_groups: groups of the GroupNorms.
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
    """Initialize every convolution of an untrained module: He normal, zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_predictors(heads: nn.Module) -> None:
    """Initialize box heads as SSD does: Xavier, zero biases."""
    for layer in heads.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_small(heads: nn.Module) -> None:
    """Initialize box heads with small weights and zero biases, so that training does not start from confident errors."""
    for layer in heads.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
