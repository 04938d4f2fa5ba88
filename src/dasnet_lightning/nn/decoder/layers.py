"""Layers of the paper's decoder: transposed convolutions to a given size, coarse blocks, and their use on patches.

Only the coarse blocks have BatchNorm. In training it takes its statistics from all positions and regions of a batch; in
evaluation it is a fixed scale and shift of each channel. The finer layers have no normalization, so a value depends on its
receptive field only, and they can run on windows (functional.patches), in training too.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.functional.patches import Patches, convolve, double, resize
from dasnet_lightning.functional.windows import Size, Windows, doubling_input_window, resize_input_window

NORM_EPS = 1e-3
COARSE_STD = 0.01
NARROWEST = 128  # channels


class CoarseNorm(nn.Module):
    """BatchNorm that also accepts a single cell of a single region in training and normalizes it as evaluation does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm: nn.BatchNorm2d | nn.SyncBatchNorm = nn.BatchNorm2d(channels, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "r c h w"]) -> Float[Tensor, "r c h w"]:
        """Normalize the features."""
        norm = self.norm
        # One value per channel has no variance. SyncBatchNorm must run anyway: the other ranks wait for this one.
        if x.numel() == x.shape[1] and not isinstance(norm, nn.SyncBatchNorm):
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(x)


class TransposedTo(nn.Module):
    """3x3 transposed convolution to a given size, then BatchNorm if `normalized`, then ReLU.

    A stride-1 transposed convolution runs as the equivalent convolution of padding 2 and holds its parameters. They are the
    kernel turned by 180 degrees, with the channel axes exchanged. A size that the layer cannot reach is reached bilinearly.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        normalized: whether to use BatchNorm.
        strided: True for stride 2 and padding 1, from n cells to 2 n - 1 or 2 n by the output padding. False for stride 1
            and padding 0, from n cells to n + 2.
    """

    def __init__(self, in_channels: int, out_channels: int, normalized: bool, strided: bool = True) -> None:
        super().__init__()
        self.strided = strided
        self.convolution: nn.Module = (
            nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, bias=not normalized)
            if strided
            else nn.Conv2d(in_channels, out_channels, 3, padding=2, bias=not normalized)
        )
        self.norm = CoarseNorm(out_channels) if normalized else nn.Identity()

    def forward(self, x: Float[Tensor, "r c1 h1 w1"], size: tuple[int, int]) -> Float[Tensor, "r c2 h2 w2"]:
        """Return features of the given (height, width)."""
        options = {"output_size": doubled((x.shape[2], x.shape[3]), size)} if self.strided else {}
        up = self.convolution(x, **options)
        up = F.relu(self.norm(up), inplace=True)
        return up if up.shape[2:] == size else F.interpolate(up, size=size, mode="bilinear", align_corners=False)


class CoarseBlock(nn.Module):
    """A pair of coarse layers of the paper's table, such as deconv9_2 and deconv9_1.

    Brings the features to the size and channel count of the finer level and concatenates the level, so the output has
    twice its channels.

    Args:
        in_channels: channels of the coarser features.
        level_channels: channels of the finer level.
        strided: see `TransposedTo`.
        doublings: number of layers that change the size; each one about doubles it.
    """

    def __init__(self, in_channels: int, level_channels: int, strided: bool = True, doublings: int = 1) -> None:
        super().__init__()
        narrow = max(NARROWEST, level_channels // 4)
        inputs = (in_channels, *[narrow] * (doublings - 1))
        self.ups = nn.ModuleList(TransposedTo(channels, narrow, True, strided) for channels in inputs)
        self.widen = nn.Sequential(
            nn.Conv2d(narrow, level_channels, 1, bias=False), CoarseNorm(level_channels), nn.ReLU(inplace=True)
        )

    def forward(
        self, coarse: Float[Tensor, "r c1 h1 w1"], level: Float[Tensor, "r c2 h2 w2"]
    ) -> Float[Tensor, "r c3 h2 w2"]:
        """Up-sample the features and concatenate the finer level."""
        for up, size in zip(self.ups, halvings(len(self.ups), (level.shape[2], level.shape[3])), strict=True):
            coarse = up(coarse, size)
        return torch.cat([self.widen(coarse), level], dim=1)


def doubled(size: Size, target: Size) -> Size:
    """Return the size nearest to `target` that a transposed convolution of stride 2 can reach: 2 n - 1 or 2 n."""
    height, width = (min(max(side, 2 * n - 1), 2 * n) for side, n in zip(target, size, strict=True))
    return height, width


def halvings(count: int, size: Size) -> list[Size]:
    """Return the sizes after each of `count` up-sampling layers: half of the next, rounded up; the last is `size`."""
    return [(-(-size[0] // 2**left), -(-size[1] // 2**left)) for left in reversed(range(count))]


def transpose_patches(layer: TransposedTo, patches: Patches, size: Size) -> Patches:
    """Run a strided layer without normalization on patches, to maps of `size` cells."""
    if patches.whole:
        return Patches(layer(patches.values, size), None, size)
    convolution = layer.convolution
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert isinstance(layer.norm, nn.Identity)
    up = double(patches, convolution.weight, convolution.bias, doubled(patches.grid, size))
    return resize(up.map(relu_), size)


def transposing_input_window(windows: Windows, grid: Size) -> Windows:
    """Return what `transpose_patches` reads of maps of `grid` cells for these windows."""
    return doubling_input_window(resize_input_window(windows, doubled(grid, windows.grid)), grid)


def convolve_patches(layer: nn.Conv2d, patches: Patches) -> Patches:
    """Run a convolution that keeps the size on patches."""
    if patches.whole:
        return patches.map(layer)
    return convolve(patches, layer.weight, layer.bias, layer.dilation[0])


def run_patches(layers: nn.Sequential, patches: Patches) -> Patches:
    """Run convolutions that keep the size, and cellwise layers, on patches."""
    if patches.whole:
        return patches.map(layers)
    for layer in layers:
        patches = convolve_patches(layer, patches) if isinstance(layer, nn.Conv2d) else patches.map(layer)
    return patches


def halo(*modules: nn.Module) -> int:
    """Return the total reach in cells of all convolutions of these modules; each must keep the size of its map."""
    convolutions = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    return sum(_reach(layer) for layer in convolutions)


def _reach(layer: nn.Conv2d) -> int:
    reach = layer.dilation[0] * (layer.kernel_size[0] - 1) // 2
    assert (layer.stride, layer.padding, layer.padding_mode) == ((1, 1), (reach, reach), "zeros"), layer
    return reach


def relu_(values: Tensor) -> Tensor:
    """Apply ReLU in place; safe on the output of a convolution, which nothing else reads."""
    return F.relu(values, inplace=True)


def initialize(module: nn.Module) -> None:
    """Initialize one layer as the paper does: small Gaussian weights before a BatchNorm, Xavier elsewhere, zero biases."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        if module.bias is None:  # a BatchNorm follows
            nn.init.normal_(module.weight, std=COARSE_STD)
        else:
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
