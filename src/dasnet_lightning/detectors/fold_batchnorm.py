"""Folding of BatchNorms into the convolutions before them, for faster inference; only rounding changes.

A BatchNorm in evaluation mode is a scale and a shift of each channel, which the convolution's own weights can do. A
BatchNorm is folded only if it certainly follows the convolution: as the next layer of a plain `nn.Sequential`.
"""

from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dasnet_lightning.detectors.layers import FrozenBatchNorm

Norm = nn.BatchNorm2d | FrozenBatchNorm


@torch.no_grad()
def fold_norms(module: nn.Module) -> int:
    """Fold the BatchNorms of a module in place; folded ones disappear from the state dict.

    Not folded are layers that are used more than once, norms in training mode, subclasses of convolutions, and layers with
    hooks (such as spectral norm).

    Returns:
        The number of BatchNorms that were folded.
    """
    uses = Counter(id(layer) for _, layer in module.named_modules(remove_duplicate=False))
    folded = 0
    for outer in [layer for layer in module.modules() if _is_plain_sequential(layer)]:
        assert isinstance(outer, nn.Sequential)
        for index, (layer, norm) in enumerate(zip(list(outer), list(outer)[1:], strict=False)):
            if type(layer) is not nn.Conv2d or not isinstance(norm, Norm) or not _is_fixed(norm):
                continue
            if _has_hooks(layer) or _has_hooks(norm):
                continue
            if uses[id(layer)] == uses[id(norm)] == uses[id(outer)] == 1:
                _fold(layer, norm)
                outer[index + 1] = nn.Identity()
                folded += 1
    return folded


def _is_plain_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _is_fixed(norm: nn.Module) -> bool:
    return isinstance(norm, FrozenBatchNorm) or (not norm.training and getattr(norm, "running_var", None) is not None)


def _fold(convolution: nn.Conv2d, norm: nn.Module) -> None:
    assert isinstance(norm, Norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )  # fmt: skip
    convolution.weight, convolution.bias = (nn.Parameter(new, requires_grad=False) for new in (weight, bias))
