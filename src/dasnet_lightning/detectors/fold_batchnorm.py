"""Batch norms folded into the convolutions before them, for inference: the same numbers but for rounding, in fewer passes.

A norm in evaluation mode is a scale and a shift of each channel, which a convolution can do with its own weights. Only
what is certain to follow a convolution is folded: its neighbour in a plain `nn.Sequential`, as in MobileNets.
"""

from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dasnet_lightning.detectors.layers import FrozenBatchNorm

Norm = nn.BatchNorm2d | FrozenBatchNorm


@torch.no_grad()
def fold_norms(module: nn.Module) -> int:
    """Fold what can be folded, in place, and return how many norms that were: they are gone from the state dict.

    What stays: layers that are used at several places, norms in training mode, and layers that do more than their class
    says, by hooks (spectral norm is one) or in a subclass.
    """
    uses = Counter(id(layer) for _, layer in module.named_modules(remove_duplicate=False))
    folded = 0
    for outer in [layer for layer in module.modules() if _is_plain(layer)]:
        assert isinstance(outer, nn.Sequential)
        for place, (layer, norm) in enumerate(zip(list(outer), list(outer)[1:], strict=False)):
            if type(layer) is not nn.Conv2d or not isinstance(norm, Norm) or not _is_fixed(norm):
                continue
            if _has_hooks(layer) or _has_hooks(norm):
                continue
            if uses[id(layer)] == uses[id(norm)] == uses[id(outer)] == 1:
                _fold(layer, norm)
                outer[place + 1] = nn.Identity()
                folded += 1
    return folded


def _is_plain(module: nn.Module) -> bool:
    """Whether a module runs its layers one after the other and does nothing else."""
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
