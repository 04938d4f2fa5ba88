"""Heads: from the decoder's features to scores of each pixel."""

from jaxtyping import Float
from torch import Tensor, nn

from dasnet_lightning.errors import ConfigError


class SemanticHead(nn.Module):
    """Background and foreground logits of each pixel of a region."""

    out_channels = 2

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.score = build_score(in_channels, self.out_channels)

    def forward(self, features: Float[Tensor, "r c h w"]) -> Float[Tensor, "r 2 h w"]:
        return self.score(features)


class PositionSensitiveHead(nn.Module):
    """2 k k position-sensitive score maps (functional.position_sensitive): an inside and an outside map for each cell."""

    def __init__(self, in_channels: int, cells: int = 7) -> None:
        super().__init__()
        if cells < 1:
            raise ConfigError(f"cells is {cells}, expected at least 1 cell along each side of a box")
        self.cells = cells
        self.out_channels = 2 * cells * cells
        self.score = build_score(in_channels, self.out_channels)

    def forward(self, features: Float[Tensor, "r c h w"]) -> Float[Tensor, "r c2 h w"]:
        return self.score(features)


def build_score(in_channels: int, out_channels: int) -> nn.Conv2d:
    """The score layer of both tasks (paper section 3): 3x3, small weights, no preference in the beginning."""
    score = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(score.weight, std=0.01)
    assert score.bias is not None
    nn.init.zeros_(score.bias)
    return score
