"""Heads, which turn the decoder's features into the scores of each pixel."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.boxes import scale_boxes
from dasnet_lightning.functional.position_sensitive import inside_logits, pixel_grid, read_boxes
from dasnet_lightning.types import Regions


class Head(nn.Module, ABC):
    """Last layer of the network: a `MapHead` after a decoder of maps, a `ShapeHead` after a decoder of boxes.

    Attributes:
        out_channels: number of score maps of each region or box.
    """

    out_channels: int

    @abstractmethod
    def forward(self, features: Float[Tensor, "r c h w"]) -> Float[Tensor, "r c2 h2 w2"]:
        """Return the scores of each pixel."""


class MapHead(Head):
    """Head of maps of the whole image."""

    @abstractmethod
    def foreground(
        self, scores: Float[Tensor, "r c h w"], regions: Regions, size: tuple[int, int]
    ) -> Float[Tensor, "r h w"]:
        """Return the probability that each pixel belongs to an object of its region; 0 where the maps are undefined.

        Args:
            scores: the maps that `forward` returned.
            regions: the regions, boxes in input pixels.
            size: (H, W) of the input.
        """


class SemanticHead(MapHead):
    """Head with a background and a foreground logit for each pixel of a region."""

    out_channels = 2

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.score = build_score(in_channels, self.out_channels)

    def forward(self, features: Float[Tensor, "r c h w"]) -> Float[Tensor, "r 2 h w"]:
        """See `Head.forward`."""
        return self.score(features)

    def foreground(
        self, scores: Float[Tensor, "r 2 h w"], regions: Regions, size: tuple[int, int]
    ) -> Float[Tensor, "r h w"]:
        """See `MapHead.foreground`."""
        return scores.float().softmax(dim=1)[:, 1]


class PositionSensitiveHead(MapHead):
    """Head with 2 k k position-sensitive score maps: an inside and an outside map for each of the k x k cells of a box.

    See functional.position_sensitive.

    Args:
        in_channels: channels of the decoder's features.
        cells: k.
    """

    def __init__(self, in_channels: int, cells: int = 7) -> None:
        super().__init__()
        if cells < 1:
            raise ConfigError(f"cells is {cells}, expected at least 1")
        self.cells = cells
        self.out_channels = 2 * cells * cells
        self.score = build_score(in_channels, self.out_channels)

    def forward(self, features: Float[Tensor, "r c h w"]) -> Float[Tensor, "r c2 h w"]:
        """See `Head.forward`."""
        return self.score(features)

    def foreground(
        self, scores: Float[Tensor, "r c h w"], regions: Regions, size: tuple[int, int]
    ) -> Float[Tensor, "r h w"]:
        """Return the largest inside probability over the boxes of the region; 0 outside of its boxes."""
        cells = (scores.shape[2], scores.shape[3])
        boxes = scale_boxes(regions.boxes, size, cells)
        grid = pixel_grid(boxes, cells)
        inside = inside_logits(read_boxes(scores, boxes, regions.region_index, grid, cells, self.cells)).sigmoid()
        rows = regions.region_index[:, None, None] * cells[0] + grid.rows[:, :, None]
        index = (rows * cells[1] + grid.columns[:, None, :])[grid.valid]
        zeros = inside.new_zeros(len(regions) * cells[0] * cells[1])
        return zeros.scatter_reduce(0, index, inside[grid.valid], "amax").view(len(regions), *cells)


class ShapeHead(Head):
    """Head with one logit for each cell of the grid of a box: whether it belongs to the object of the box.

    The logits are bilinearly brought to twice the cells, where the loss and the image's pixels read them.
    """

    out_channels = 1

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.score = build_score(in_channels, self.out_channels)

    def forward(self, features: Float[Tensor, "n c k k"]) -> Float[Tensor, "n 1 g g"]:
        """Return the logits at twice the resolution of the features."""
        size = (2 * features.shape[2], 2 * features.shape[3])
        return F.interpolate(self.score(features), size=size, mode="bilinear", align_corners=False)


def build_score(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Build the score layer of both tasks (paper section 3): a 3x3 convolution with small weights and zero biases."""
    score = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(score.weight, std=0.01)
    assert score.bias is not None
    nn.init.zeros_(score.bias)
    return score
