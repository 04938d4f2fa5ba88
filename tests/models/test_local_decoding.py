"""Decoding in windows gives the numbers of whole maps, for every decoder, several pyramids and difficult boxes."""

import pytest
import torch
from torch import Tensor, nn

from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.functional.attention import attend
from dasnet_lightning.functional.pooling import PoolShape, max_pool_with_switches
from dasnet_lightning.functional.windows import Windows, box_windows, join_windows
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.local_decoding import DecodedWindows, decode_windows, decodes_locally
from dasnet_lightning.nn.decoder import MapDecoder, build_decoder, layers, unpooling
from dasnet_lightning.nn.decoder.base import LocalDecoder
from dasnet_lightning.nn.decoder.layers import halo
from dasnet_lightning.nn.heads import SemanticHead
from dasnet_lightning.types import Pyramid, Regions
from toy import ToyDetector

VGG = (8, 16, 32, 64, 100, 320)
POOLS = (*[PoolShape(2, 2, 0)] * 4, PoolShape(3, 1, 1))
# kind of pyramid: strides, size of the images; of 257 and 301 pixels few sizes are twice the next one's
PYRAMIDS = {
    "vgg 320": (VGG, (320, 320)),
    "vgg 300": (VGG, (300, 300)),
    "vgg odd": (VGG, (257, 301)),
    "mobilenet 320": ((4, 8, 16, 32, 64, 128, 256, 512), (320, 320)),
    "mobilenet odd": ((4, 8, 16, 32, 64, 128, 256, 512), (217, 301)),
    "tiny": ((4, 8, 16, 32, 64), (128, 128)),
    "fpn": ((4, 8, 16, 32, 64), (320, 256)),
    "gap": ((4, 16), (160, 130)),
    "one level": ((8,), (96, 120)),
}
WIDTHS = {"light": (6, 6, 8), "paper": (4, 4, 6, 8)}
CASES = [(kind, name, False) for kind in PYRAMIDS for name in WIDTHS] + [
    (kind, "paper", True) for kind in PYRAMIDS if kind.startswith("vgg")
]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the paper's decoder few channels; layers, sizes and switches stay the same."""
    monkeypatch.setattr(unpooling, "STAGES", ((8, 8, 8), (8, 8, 6), (6, 6, 6), (6, 4), (4, 4)))
    monkeypatch.setattr(unpooling, "FC_WIDTHS", (8, 8))
    monkeypatch.setattr(unpooling, "CONV4_3", 6)
    monkeypatch.setattr(layers, "NARROWEST", 6)


def make_pyramid(kind: str, images: int, switched: bool) -> Pyramid:
    strides, size = PYRAMIDS[kind]
    cells = [tuple(-(-side // stride) for side in size) for stride in strides]
    levels = tuple(torch.randn(images, 6 + number, *shape) for number, shape in enumerate(cells))
    codes, side = [], size
    for channels, shape in zip((4, 6, 6, 8, 8), POOLS, strict=True):
        pooled, switches = max_pool_with_switches(torch.randn(images, channels, *side), *shape, ceil_mode=True)
        codes.append(switches)
        side = pooled.shape[2:]
    if switched:  # conv4_3 has the size that pool4 looked at
        levels = (torch.randn(images, 6, *codes[2].shape[2:]), torch.randn(images, 7, *codes[4].shape[2:]), *levels[2:])
    return Pyramid(levels, strides, size, tuple(codes) if switched else None)


def build(kind: str, name: str, switched: bool, pyramid: Pyramid, **options) -> DASNet:
    channels = tuple(level.shape[1] for level in pyramid.levels)
    widths = {} if switched else {"widths": WIDTHS[name]}
    decoder = build_decoder(name, channels, pyramid.strides, POOLS if switched else None, **widths, **options)
    for module in decoder.modules():  # else what untrained layers say fades away
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.1, 0.1)
    assert isinstance(decoder, LocalDecoder)
    return DASNet(FrozenDetector(ToyDetector(4)), decoder, SemanticHead(decoder.out_channels)).eval()


def hard_boxes(size: tuple[int, int], number: int) -> Tensor:
    """Return boxes of all sizes: random, across the border, one cell, corners, one side, the whole image, no extent."""
    height, width = size
    span = torch.tensor([width, height, width, height])
    low, extent = torch.rand(number, 2) * 1.1 - 0.1, torch.rand(number, 2) ** 2 * 0.7
    boxes = torch.cat([low, low + extent], dim=1) * span
    special = [
        [0, 0, 8, 8], [width - 3, height - 3, width, height], [0, 0, width, height], [0, 40, width, 44],
        [16, 0, 24, height], [40, 40, 41, 41], [60.5, 60.5, 60.5, 60.5], [-20, -20, 3, 3],
    ]  # fmt: skip
    return torch.cat([boxes, torch.tensor(special, dtype=torch.float32)])


def make_regions(boxes: Tensor, images: int, grouped: bool) -> Regions:
    """Make one region of each box, or of three boxes each."""
    owners = torch.arange(len(boxes)) // (3 if grouped else 1)
    number = int(owners.max()) + 1
    image = torch.arange(number) * images // number
    return Regions(boxes, owners, image, torch.ones(number, dtype=torch.int64))


def windows_of(regions: Regions, size: tuple[int, int]) -> list[Windows]:
    """Return the windows of each image's boxes, in input pixels."""
    images = regions.image_index[regions.region_index]
    return [box_windows(regions.boxes[images == image], size) for image in images.unique()]


def compare(decoded_windows: list[DecodedWindows], whole: Tensor, regions: Regions) -> float:
    """Return the largest difference over all cells of the read windows, and check that each window occurs once."""
    worst = 0.0
    for decoded in decoded_windows:
        inside = decoded.patches.windows.clip()
        for number, row in zip(decoded.window_index.tolist(), decoded.patch_index.tolist(), strict=True):
            expected, values = whole[regions.region_index[number]], decoded.patches.values[row]
            (top, left), (y1, x1) = inside.start[row].tolist(), inside.stop[row].tolist()
            y0, x0 = decoded.patches.windows.start[row].tolist()
            values = values[:, top - y0 : y1 - y0, left - x0 : x1 - x0]
            worst = max(worst, float((values - expected[:, top:y1, left:x1]).abs().max()))
    assert sorted(torch.cat([decoded.window_index for decoded in decoded_windows]).tolist()) == list(
        range(len(regions.boxes))
    )
    return worst


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "grouped"])
@pytest.mark.parametrize(("kind", "name", "switched"), CASES)
def test_windows_are_decoded_as_the_whole_map_is(kind, name, switched, grouped):
    torch.manual_seed(0)
    pyramid = make_pyramid(kind, 2, switched)
    model = build(kind, name, switched, pyramid)
    regions = make_regions(hard_boxes(pyramid.size, 28), 2, grouped)
    with torch.no_grad():
        whole = model.decoder.forward(attend(pyramid, regions))
        decoded_windows = list(decode_windows(model, pyramid, regions, windows_of(regions, pyramid.size), 5))
    assert whole.std() > 0.01  # else nothing was compared
    assert compare(decoded_windows, whole, regions) <= 1e-5 * max(1.0, float(whole.abs().max()))
    cells = sum(decoded.patches.values[0, 0].numel() * len(decoded.patches.values) for decoded in decoded_windows)
    assert cells < (0.8 if grouped else 0.4) * whole[:, 0].numel()


@pytest.mark.parametrize("out_stride", [16, 8, 4, 2])
@pytest.mark.parametrize(("kind", "name", "switched"), [("vgg 320", "paper", True), ("mobilenet odd", "paper", False)])
def test_early_ends(kind, name, switched, out_stride):
    torch.manual_seed(0)
    pyramid = make_pyramid(kind, 2, switched)
    model = build(kind, name, switched, pyramid, out_stride=out_stride)
    regions = make_regions(hard_boxes(pyramid.size, 6), 2, False)
    with torch.no_grad():
        whole = model.decoder.forward(attend(pyramid, regions))
        assert whole.shape[2:] == model.decoder.out_size(pyramid)
        decoded_windows = list(decode_windows(model, pyramid, regions, windows_of(regions, pyramid.size), 3))
    assert compare(decoded_windows, whole, regions) <= 1e-5 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize("rounding", ["cover", "inside"])
def test_both_roundings_and_other_sizes_of_the_answer(rounding):
    torch.manual_seed(0)
    pyramid = make_pyramid("mobilenet odd", 2, False)
    model = build("mobilenet odd", "light", False, pyramid)
    model.rounding = rounding
    regions = make_regions(hard_boxes(pyramid.size, 10), 2, False)
    images = regions.image_index[regions.region_index]
    sizes = ((500, 375), (90, 120))
    windows = []
    for image, size in enumerate(sizes):
        scale = torch.tensor([size[1] / 301, size[0] / 217]).repeat(2)
        windows.append(box_windows(regions.boxes[images == image] * scale, size))
    with torch.no_grad():
        whole = model.decoder.forward(attend(pyramid, regions, rounding))
        decoded_windows = list(decode_windows(model, pyramid, regions, windows, 16))
    assert compare(decoded_windows, whole, regions) <= 1e-5 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize(("kind", "name", "switched"), [(k, n, s) for k, n, s in CASES if k in ("vgg 320", "tiny")])
def test_gradients_are_those_of_the_whole_map(kind, name, switched):
    """Gradients of the read cells to parameters and levels, in training mode, including BatchNorm of the coarse blocks."""
    torch.manual_seed(0)
    pyramid = make_pyramid(kind, 2, switched)
    model = build(kind, name, switched, pyramid).double().train()
    regions = make_regions(hard_boxes(pyramid.size, 4), 2, True)
    windows = windows_of(regions, pyramid.size)
    read = join_windows(windows, pyramid.size)
    levels = [level.double() for level in pyramid.levels]

    def gradients(local: bool) -> list[Tensor]:
        leaves = [level.clone().requires_grad_() for level in levels]
        copy = Pyramid(tuple(leaves), pyramid.strides, pyramid.size, pyramid.switches)
        grid = model.decoder.out_size(copy)
        stride = pyramid.size[0] // grid[0]
        weights = torch.randn(1, 1, *grid, dtype=torch.double, generator=torch.Generator().manual_seed(1))
        total = torch.zeros((), dtype=torch.double)
        if local:
            decoded_windows = decode_windows(model, copy, regions, windows, len(regions))
            placed = [
                (number, decoded.patches.values[row], decoded.patches.windows.start[row].tolist())
                for decoded in decoded_windows
                for number, row in zip(decoded.window_index.tolist(), decoded.patch_index.tolist(), strict=True)
            ]
        else:
            maps = model.decoder.forward(attend(copy, regions))
            placed = [(n, maps[owner], [0, 0]) for n, owner in enumerate(regions.region_index.tolist())]
        for number, values, (top, left) in placed:
            y0, x0, y1, x1 = (side // stride for side in (*read.start[number].tolist(), *read.stop[number].tolist()))
            part = values[:, y0 - top : y1 - top, x0 - left : x1 - left]
            total = total + (part * weights[0, :, y0:y1, x0:x1]).sum()
        parameters = [p for p in model.decoder.parameters() if p.requires_grad]
        return list(torch.autograd.grad(total, [*parameters, *leaves]))

    for whole, local in zip(gradients(False), gradients(True), strict=True):
        tolerance = 1e-6 if name == "light" else 1e-9  # PositionNorm takes its mean in single precision
        assert (whole - local).abs().max() <= tolerance * max(1.0, float(whole.abs().max()))


def test_the_halo_comes_from_the_layers():
    """The halos of design.md section 6: 3 pixels at 320 (with the score layer), 2 at 160, 3 at 80, 3 at 40."""
    pyramid = make_pyramid("vgg 320", 1, True)
    model = build("vgg 320", "paper", True, pyramid)
    assert [halo(stage) for stage in model.decoder.stages] == [3, 3, 3, 2, 2]
    assert halo(model.head) == 1
    window = Windows(torch.tensor([[100, 160]]), torch.tensor([[164, 200]]), (320, 320)).grow(1)
    entry = model.decoder.input_windows(window, pyramid)
    # 97 -> 48 - 2 -> 23 - 3 -> 10 - 3 -> 3;  167 -> 84 + 2 -> 43 + 3 -> 23 + 3 -> 13
    assert (entry.start[0, 0], entry.stop[0, 0], entry.grid) == (3, 13, (20, 20))
    model.decoder.stages[4].append(nn.Conv2d(4, 4, 3, padding=16, dilation=16))
    assert model.decoder.input_windows(window, pyramid).start[0, 0] < 3


def test_a_layer_that_reads_further_than_it_declares_is_reported(monkeypatch):
    pyramid = make_pyramid("tiny", 1, False)
    model = build("tiny", "light", False, pyramid)
    regions = make_regions(torch.tensor([[40.0, 40, 60, 60]]), 1, False)
    input_windows = model.decoder.input_windows
    monkeypatch.setattr(
        model.decoder, "input_windows", lambda windows, pyramid: input_windows(windows.grow(-4), pyramid)
    )
    with pytest.raises(AssertionError, match="reads further"):
        list(decode_windows(model, pyramid, regions, windows_of(regions, pyramid.size), 1))


def test_far_boxes_of_a_region_are_decoded_apart_and_near_ones_together():
    torch.manual_seed(0)
    pyramid = make_pyramid("mobilenet 320", 1, False)
    model = build("mobilenet 320", "light", False, pyramid)
    boxes = torch.tensor([[0.0, 0, 40, 40], [270, 270, 310, 310], [20, 10, 50, 50], [275, 270, 312, 310]])
    regions = Regions(boxes, torch.zeros(4, dtype=torch.int64), torch.tensor([0]), torch.tensor([1]))
    decoded_windows = list(decode_windows(model, pyramid, regions, windows_of(regions, pyramid.size), 16))
    assert sum(len(decoded.patches.values) for decoded in decoded_windows) == 2
    together = [
        decoded.window_index[decoded.patch_index == row].tolist()
        for decoded in decoded_windows
        for row in decoded.patch_index.unique()
    ]
    assert sorted(together) == [[0, 2], [1, 3]]


class UsersDecoder(MapDecoder):
    """Returns the finest level normalized over all of its cells, which a window does not have."""

    out_channels, out_stride = 6, 4

    def forward(self, pyramid: Pyramid) -> Tensor:
        return nn.functional.instance_norm(pyramid.levels[0])


@pytest.mark.parametrize("reason", ["decoder", "soft attention"])
def test_what_cannot_be_decoded_in_windows_says_so_and_is_decoded_whole(reason):
    torch.manual_seed(0)
    pyramid = make_pyramid("tiny", 2, False)
    model = build("tiny", "light", False, pyramid)
    assert decodes_locally(model)
    if reason == "decoder":
        model = DASNet(model.detector, UsersDecoder(), SemanticHead(6))
    else:
        model.soft_attention = 0.5
    assert not decodes_locally(model)
    regions = make_regions(hard_boxes(pyramid.size, 4), 2, True)
    with torch.no_grad():
        decoded_windows = list(decode_windows(model, pyramid, regions, windows_of(regions, pyramid.size), 2))
        scores = torch.cat([model.head(decoded.patches.values) for decoded in decoded_windows])
        assert torch.allclose(scores, model.score(pyramid, regions), atol=1e-5)
    assert all(decoded.patches.whole for decoded in decoded_windows)
    assert torch.equal(
        torch.cat([decoded.window_index for decoded in decoded_windows]), torch.arange(len(regions.boxes))
    )


def test_without_regions_nothing_is_decoded():
    pyramid = make_pyramid("tiny", 2, False)
    model = build("tiny", "light", False, pyramid)
    nothing = Regions(torch.zeros(0, 4), *[torch.zeros(0, dtype=torch.int64)] * 3)
    assert list(decode_windows(model, pyramid, nothing, [], 16)) == []
