"""Scores of the pixels of a box, and their refinement at test time by a mirrored view and a guided filter."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.functional.guided_filter import guided_filter
from dasnet_lightning.types import Detections, Pyramid

FILTER_EPS = 1e-4  # variance of an edge in the image, colors 0..1
FILTER_SHARE = 1 / 24  # radius of the filter, as a share of the mean side of a box
FILTER_SIDE = 64  # pixels along a box for which the coefficients of the filter are computed; more give no better masks


@dataclass(frozen=True, eq=False)
class BoxScores:
    """The scores that were read in one box.

    Attributes:
        window: the pixels that were read: x0, y0, x1, y1, the last two exclusive.
        inside: the inside probability of each pixel.
        score: the score of the mask, 0..1.
    """

    window: tuple[int, int, int, int]
    inside: Float[Tensor, "hb wb"]
    score: Float[Tensor, ""]

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns of the window in its image."""
        x0, y0, x1, y1 = self.window
        return slice(y0, y1), slice(x0, x1)


@dataclass(frozen=True, eq=False)
class Refinement:
    """What refinement at test time reads beside the features of the images.

    Attributes:
        mirrored: features of the images mirrored left to right, whose probabilities are averaged with the others; None
            for none.
        guides: the RGB pixels of each image at the size of its masks, for the guided filter; None for none.
    """

    mirrored: Pyramid | None = None
    guides: Sequence[UInt8[Tensor, "_ _ 3"]] | None = None


NO_REFINEMENT = Refinement()


def mirror_detections(detections: Detections, width: int) -> Detections:
    """Return the detections of an image of this width (in pixels), mirrored left to right."""
    x0, y0, x1, y1 = detections.boxes.unbind(dim=1)
    return Detections(torch.stack([width - x1, y0, width - x0, y1], dim=1), detections.labels, detections.scores)


def average_mirrored(straight: BoxScores, mirrored: BoxScores) -> BoxScores:
    """Average the scores of a box with those of its mirror image.

    Rounding may give the mirrored box one row or column of pixels more or less; it is then resized.
    """
    flipped = mirrored.inside.flip(1)
    if straight.inside.numel() == 0 or flipped.numel() == 0:
        return straight
    if flipped.shape != straight.inside.shape:
        size = straight.inside.shape
        flipped = F.interpolate(flipped[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    return BoxScores(straight.window, (straight.inside + flipped) / 2, (straight.score + mirrored.score) / 2)


def filter_scores(scores: BoxScores, guide: UInt8[Tensor, "H0 W0 3"]) -> BoxScores:
    """Filter the probabilities of a box with the pixels of its image."""
    rows, columns = scores.slices
    side = (scores.inside.shape[0] * scores.inside.shape[1]) ** 0.5
    return BoxScores(scores.window, filter_map(scores.inside, guide[rows, columns], side), scores.score)


def filter_map(probs: Float[Tensor, "h w"], guide: UInt8[Tensor, "h w 3"], side: float) -> Float[Tensor, "h w"]:
    """Filter a map of probabilities with the pixels below it.

    Args:
        probs: the map.
        guide: RGB pixels.
        side: mean side of the boxes in the map, in pixels; it sets the radius of the filter.
    """
    subsample = max(1, round(side / FILTER_SIDE))
    radius = max(1, round(side * FILTER_SHARE / subsample))
    image = guide.to(probs.device).permute(2, 0, 1).to(probs.dtype) / 255
    return guided_filter(probs, image, radius, FILTER_EPS, subsample).clamp(0, 1)
