"""Heads: from the decoder's features to scores of each pixel."""

from jaxtyping import Float
from torch import Tensor, nn


class SemanticHead(nn.Module):
    """Background and foreground logits of each pixel of a region."""

    out_channels = 2

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(in_channels, self.out_channels, 3, padding=1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(self, features: Float[Tensor, "r c h w"]) -> Float[Tensor, "r 2 h w"]:
        return self.score(features)
