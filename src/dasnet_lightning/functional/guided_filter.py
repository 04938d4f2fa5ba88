"""Guided filter (He, Sun and Tang, "Guided image filtering", 2013): smooths a map along the edges of a guide image.

In each window the result is linear in the guide, q = a I + b. The coefficients minimize the distance to the map p plus
eps * |a|^2. For a guide of three channels a = (Sigma + eps * 1)^-1 (mean(I p) - mean(I) mean(p)) with the 3 x 3 covariance
Sigma of the guide, and b = mean(p) - a . mean(I). A pixel takes the mean of the coefficients of all windows around it.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def guided_filter(
    values: Float[Tensor, "h w"], guide: Float[Tensor, "3 h w"], radius: int, eps: float
) -> Float[Tensor, "h w"]:
    """Filter a map with an image of the same size.

    Args:
        values: the map p.
        guide: the image I, 0..1.
        radius: windows are squares of 2 * radius + 1 pixels, cut at the border.
        eps: regularization; edges with a variance well above it are kept.
    """
    if values.numel() == 0:
        return values
    channels = len(guide)
    products = guide[:, None] * guide[None]
    means = _box_means(torch.cat([guide, values[None], guide * values, products.flatten(0, 1)]), radius)
    mean_guide, mean_values, mean_product, mean_squares = means.split([channels, 1, channels, channels**2])
    covariance = mean_product - mean_guide * mean_values
    sigma = mean_squares.view(channels, channels, *values.shape) - mean_guide[:, None] * mean_guide[None]
    regularized = sigma.permute(2, 3, 0, 1) + eps * torch.eye(channels, device=values.device)
    slope = torch.linalg.solve(regularized, covariance.permute(1, 2, 0)).permute(2, 0, 1)
    offset = mean_values - (slope * mean_guide).sum(dim=0, keepdim=True)
    slope, offset = _box_means(torch.cat([slope, offset]), radius).split([channels, 1])
    return (slope * guide).sum(dim=0) + offset[0]


def _box_means(maps: Float[Tensor, "c h w"], radius: int) -> Float[Tensor, "c h w"]:
    """Return the mean over the window of each pixel, without the pixels beyond the border."""
    size = 2 * radius + 1
    counts = torch.ones_like(maps[:1])
    sums = torch.cat([maps, counts])[None]
    sums = F.avg_pool2d(sums, (size, 1), stride=1, padding=(radius, 0))
    sums = F.avg_pool2d(sums, (1, size), stride=1, padding=(0, radius))[0]
    return sums[:-1] / sums[-1:]
