"""Guided filter (He, Sun and Tang, "Guided image filtering", 2013): smooths a map along the edges of a guide image.

In each window the result is linear in the guide, q = a I + b. The coefficients minimize the distance to the map p plus
eps * |a|^2. For a guide of three channels, with the 3 x 3 covariance Sigma of the guide:

    a = (Sigma + eps * 1)^-1 (mean(I p) - mean(I) mean(p))
    b = mean(p) - a * mean(I)

A pixel takes the mean of the coefficients of all windows around it.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def guided_filter(
    values: Float[Tensor, "h w"], guide: Float[Tensor, "3 h w"], radius: int, eps: float, subsample: int = 1
) -> Float[Tensor, "h w"]:
    """Filter a map with an image of the same size.

    Args:
        values: the map p.
        guide: the image I, 0..1.
        radius: windows are squares of 2 * radius + 1 pixels, cut at the border; pixels of the subsampled map.
        eps: regularization; edges with a variance well above it are kept.
        subsample: compute the coefficients at this fraction of the size and resize them to the guide (He and Sun, "Fast
            guided filter", 2015). 1 computes them at full size.
    """
    if values.numel() == 0:
        return values
    size = values.shape
    maps = torch.cat([guide, values[None]])
    if subsample > 1:
        maps = F.adaptive_avg_pool2d(maps, (max(1, size[0] // subsample), max(1, size[1] // subsample)))
    slope, offset = _coefficients(maps[3], maps[:3], radius, eps).split([3, 1])
    if subsample > 1:
        resized = F.interpolate(torch.cat([slope, offset])[None], size=size, mode="bilinear", align_corners=False)[0]
        slope, offset = resized.split([3, 1])
    return (slope * guide).sum(dim=0) + offset[0]


def _coefficients(
    values: Float[Tensor, "h w"], guide: Float[Tensor, "3 h w"], radius: int, eps: float
) -> Float[Tensor, "4 h w"]:
    """Return the mean of a (three channels) and b over the windows around each pixel."""
    products = guide[:, None] * guide[None]
    means = _box_means(torch.cat([guide, values[None], guide * values, products.flatten(0, 1)]), radius)
    mean_guide, mean_values, mean_product, mean_squares = means.split([3, 1, 3, 9])
    covariance = mean_product - mean_guide * mean_values
    sigma = mean_squares.view(3, 3, *values.shape) - mean_guide[:, None] * mean_guide[None]
    slope = _solve_3x3(sigma + eps * torch.eye(3, device=values.device)[:, :, None, None], covariance)
    offset = mean_values - (slope * mean_guide).sum(dim=0, keepdim=True)
    return _box_means(torch.cat([slope, offset]), radius)


def _solve_3x3(matrix: Float[Tensor, "3 3 h w"], vector: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Solve a symmetric system for each pixel by the cofactors, far faster than a solver for each."""
    a, b, c = matrix.unbind(dim=0)
    cofactors = torch.stack(
        [torch.linalg.cross(b, c, dim=0), torch.linalg.cross(c, a, dim=0), torch.linalg.cross(a, b, dim=0)]
    )
    determinant = (a * cofactors[0]).sum(dim=0)
    return (cofactors * vector[:, None]).sum(dim=0) / determinant


def _box_means(maps: Float[Tensor, "c h w"], radius: int) -> Float[Tensor, "c h w"]:
    """Return the mean over the window of each pixel, without the pixels beyond the border."""
    size = 2 * radius + 1
    counts = torch.ones_like(maps[:1])
    sums = torch.cat([maps, counts])[None]
    sums = F.avg_pool2d(sums, (size, 1), stride=1, padding=(radius, 0))
    sums = F.avg_pool2d(sums, (1, size), stride=1, padding=(0, radius))[0]
    return sums[:-1] / sums[-1:]
