"""Frozen is a type, not a flag: neither `train()` of an outer module nor a checkpoint callback can thaw what is inside."""

from torch import nn


class Frozen(nn.Module):
    """Holds a module in evaluation mode with gradients off: parameters and buffers stay bit-identical.

    BatchNorm statistics do not move and dropout is inactive also after `train()` of an outer module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(False)
        return self
