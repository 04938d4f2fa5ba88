"""What both decoders of the paper are made of: transposed convolutions to a given size, and the coarse blocks.

BatchNorm stands in the coarse blocks only. While the decoder trains it takes its statistics from all positions and
regions of a batch; in evaluation it is a fixed scale and shift of each channel, for each position by itself. The finer
layers have no normalisation at all, so a value depends on its receptive field and on nothing else: they can be run on
windows (functional.patches), in training too.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.functional.patches import Patches, convolve, double, resize
from dasnet_lightning.functional.windows import Windows, doubling_input_window, resize_input_window

Size = tuple[int, int]

NORM_EPS = 1e-3
COARSE_STD = 0.01
NARROWEST = 128


class CoarseNorm(nn.Module):
    """BatchNorm that also takes a single cell of a single region in training, as evaluation would."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm: nn.BatchNorm2d | nn.SyncBatchNorm = nn.BatchNorm2d(channels, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "r c h w"]) -> Float[Tensor, "r c h w"]:
        norm = self.norm
        # one value for each channel has no variance; other processes, whose values count too, wait for this one
        if x.numel() == x.shape[1] and not isinstance(norm, nn.SyncBatchNorm):
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(x)


class TransposedTo(nn.Module):
    """A 3x3 transposed convolution to a given size, then BatchNorm where `normalised`, then ReLU.

    strided: stride 2 and padding 1, from n cells to 2n - 1 or 2n by the output padding. Else stride 1 and padding 0,
    from n to n + 2: it runs as the convolution of padding 2 that it is, and its parameters are those of the convolution
    (of the transposed one they are the kernel turned by 180 degrees, with the channel axes exchanged). A size that
    neither can reach is reached bilinearly.
    """

    def __init__(self, in_channels: int, out_channels: int, normalised: bool, strided: bool = True) -> None:
        super().__init__()
        self.strided = strided
        self.convolution: nn.Module = (
            nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, bias=not normalised)
            if strided
            else nn.Conv2d(in_channels, out_channels, 3, padding=2, bias=not normalised)
        )
        self.norm = CoarseNorm(out_channels) if normalised else nn.Identity()

    def forward(self, x: Float[Tensor, "r c1 h1 w1"], size: tuple[int, int]) -> Float[Tensor, "r c2 h2 w2"]:
        near = {"output_size": doubled((x.shape[2], x.shape[3]), size)} if self.strided else {}
        up = self.convolution(x, **near)
        up = F.relu(self.norm(up), inplace=True)
        return up if up.shape[2:] == size else F.interpolate(up, size=size, mode="bilinear", align_corners=False)


class CoarseBlock(nn.Module):
    """A pair of the table's coarse layers (deconv9_2 and deconv9_1): to the size and channel count of the finer level.

    Then the level is concatenated: the answer has twice its channels. `ups` are the layers that change the size, one or
    more; what lies between two of them has half the cells of the next.
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
        for up, size in zip(self.ups, halvings(len(self.ups), (level.shape[2], level.shape[3])), strict=True):
            coarse = up(coarse, size)
        return torch.cat([self.widen(coarse), level], dim=1)


def doubled(size: Size, wanted: Size) -> Size:
    """The size nearest to `wanted` that a transposed convolution of stride 2 can reach: 2n - 1 or 2n."""
    near = [min(max(want, 2 * n - 1), 2 * n) for want, n in zip(wanted, size, strict=True)]
    return near[0], near[1]


def halvings(count: int, size: Size) -> list[Size]:
    """The sizes after each of `count` up-sampling layers: half of the next one's, rounded up, the last is `size`."""
    return [(-(-size[0] // 2**left), -(-size[1] // 2**left)) for left in reversed(range(count))]


def transpose_patches(layer: TransposedTo, patches: Patches, size: Size) -> Patches:
    """A strided layer without normalisation, on patches."""
    if patches.whole:
        return Patches(layer(patches.values, size), None, size)
    convolution = layer.convolution
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert isinstance(layer.norm, nn.Identity)
    up = double(patches, convolution.weight, convolution.bias, doubled(patches.grid, size))
    return resize(up.map(relu_), size)


def before_transposing(windows: Windows, grid: Size) -> Windows:
    """What `transpose_patches` reads of maps of `grid` cells for these windows."""
    return doubling_input_window(resize_input_window(windows, doubled(grid, windows.grid)), grid)


def convolve_patches(layer: nn.Conv2d, patches: Patches) -> Patches:
    """A convolution that keeps the size, on patches."""
    if patches.whole:
        return patches.map(layer)
    return convolve(patches, layer.weight, layer.bias, layer.dilation[0])


def run_patches(layers: nn.Sequential, patches: Patches) -> Patches:
    """Convolutions that keep the size, and functions of each cell by itself."""
    if patches.whole:
        return patches.map(layers)
    for layer in layers:
        patches = convolve_patches(layer, patches) if isinstance(layer, nn.Conv2d) else patches.map(layer)
    return patches


def halo(*modules: nn.Module) -> int:
    """How far all the convolutions inside these modules look, one after the other: they keep the size of their map."""
    convolutions = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    return sum(_reach(layer) for layer in convolutions)


def _reach(layer: nn.Conv2d) -> int:
    reach = layer.dilation[0] * (layer.kernel_size[0] - 1) // 2
    assert (layer.stride, layer.padding, layer.padding_mode) == ((1, 1), (reach, reach), "zeros"), layer
    return reach


def relu_(values: Tensor) -> Tensor:
    """ReLU in place: what a convolution gives is read by nobody else."""
    return F.relu(values, inplace=True)


def initialize(module: nn.Module) -> None:
    """The paper's start for one layer: small gaussians in front of a BatchNorm, Xavier elsewhere, biases 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        if module.bias is None:  # BatchNorm has the bias
            nn.init.normal_(module.weight, std=COARSE_STD)
        else:
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
