import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.nn.decoder import build_decoder
from dasnet_lightning.nn.decoder.zoom import BoxNorm, ZoomDecoder, select_levels
from dasnet_lightning.nn.heads import ShapeHead
from dasnet_lightning.types import Pyramid, Regions

MOBILENET = ((24, 32, 96, 320), (4, 8, 16, 32))


def make_pyramid(images: int = 1, size: int = 320) -> Pyramid:
    levels = tuple(torch.randn(images, c, size // s, size // s) for c, s in zip(*MOBILENET, strict=True))
    return Pyramid(levels, MOBILENET[1], (size, size))


def make_regions(boxes: list[list[float]], image_index: list[int] | None = None) -> Regions:
    index = torch.arange(len(boxes))
    images = torch.zeros_like(index) if image_index is None else torch.tensor(image_index)
    return Regions(torch.tensor(boxes).reshape(-1, 4), index, images, torch.ones_like(index))


def test_its_size_is_that_of_the_published_recipe():
    decoder, head = build_decoder("zoom", *MOBILENET), ShapeHead(32)
    assert isinstance(decoder, ZoomDecoder)
    weights = sum(p.numel() for module in (decoder, head) for p in module.parameters())
    assert weights == pytest.approx(0.37e6, rel=0.02)
    pyramid = make_pyramid()
    with FlopCounterMode(display=False) as counter:
        head(decoder.eval()(pyramid, make_regions([[10.0, 10, 200, 150]]), "cover"))
    convolutions = sum(
        flops for operation, flops in counter.get_flop_counts()["Global"].items() if "convolution" in str(operation)
    )
    assert convolutions / 2 == pytest.approx(0.067e9, rel=0.02)
    assert counter.get_total_flops() / 2 < 0.085e9  # with the sampling


def test_boxes_do_not_influence_each_other_in_evaluation():
    decoder = build_decoder("zoom", *MOBILENET).eval()
    pyramid = make_pyramid(2)
    boxes = [[10.0, 10, 200, 150], [100.0, 50, 320, 320], [5.0, 200, 60, 240]]
    together = decoder(pyramid, make_regions(boxes, [0, 1, 1]), "cover")
    alone = decoder(pyramid, make_regions(boxes[1:2], [1]), "cover")
    assert torch.allclose(together[1], alone[0], atol=1e-5)
    # nor do the other boxes of its region
    grouped = Regions(torch.tensor(boxes), torch.tensor([0, 1, 1]), torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert torch.allclose(decoder(pyramid, grouped, "cover"), together, atol=1e-5)


def test_only_the_features_of_the_box_matter():
    decoder, pyramid = build_decoder("zoom", *MOBILENET).eval(), make_pyramid()
    regions = make_regions([[64.0, 96, 192, 256]])
    levels = [level.clone() for level in pyramid.levels]
    for level, stride in zip(levels, pyramid.strides, strict=True):
        level[:, :, 256 // stride :] += 3
        level[:, :, :, : 64 // stride] *= -2
    changed = Pyramid(tuple(levels), pyramid.strides, pyramid.size)
    assert torch.equal(decoder(changed, regions, "cover"), decoder(pyramid, regions, "cover"))


def test_batchnorm_takes_its_statistics_from_two_boxes_or_more():
    norm, one = BoxNorm(3), torch.randn(1, 3, 4, 4) + 5
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    for features in (one, one[:0]):
        found = norm(features)
        assert torch.equal(found, norm.eval()(features))
        norm.train()
        assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
        found.sum().backward()
        assert norm.norm.weight.grad is not None
    two = norm(one.repeat(2, 1, 1, 1))
    assert float(two.detach().mean()) == pytest.approx(0, abs=1e-5)
    assert norm.norm.running_mean.mean() > 0.3


def test_sync_batchnorm_replaces_every_norm():
    decoder = nn.SyncBatchNorm.convert_sync_batchnorm(build_decoder("zoom", *MOBILENET))
    norms = [part.norm for part in decoder.modules() if isinstance(part, BoxNorm)]
    assert len(norms) == 6
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


@pytest.mark.parametrize(
    ("strides", "levels"),
    [
        ((4, 8, 16, 32, 64), (0, 1, 2, 3)),
        ((8, 16, 32, 64, 107, 320), (0, 1, 2, 3)),
        ((2, 4, 8, 16, 32), (1, 2, 3, 4)),
        ((4, 8), (0, 1)),
        ((2, 3), (0, 1)),
        ((2, 4), (0, 1)),
    ],
)
def test_it_reads_the_levels_that_there_are(strides, levels):
    assert select_levels(strides, 4) == levels
    decoder = build_decoder("zoom", (8,) * len(strides), strides)
    assert decoder.cells == (32, 16, 8, 4)[: len(levels)]
    assert decoder.out_channels == 32


def test_options_that_cannot_work_are_refused():
    for options, message in (
        ({"grid": 20}, "grid is 20, expected a positive multiple of 8"),
        ({"widths": [8]}, r"widths is \[8\], expected three"),
        ({"margin": -0.1}, "margin is -0.1"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_decoder("zoom", *MOBILENET, **options)
    with pytest.raises(ConfigError, match=r"at least two levels, the detector has strides \(8,\)"):
        build_decoder("zoom", (8,), (8,))
    with pytest.raises(ConfigError, match="set soft_attention to 0"):
        build_dasnet(3, "ssd_tiny", decoder="zoom", soft_attention=0.5)
    assert build_decoder("zoom", *MOBILENET, grid=24).cells == (24, 12, 6, 3)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_no_shape_depends_on_the_boxes(count):
    """The decoder is exportable: one graph serves any number of boxes, here traced with two."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.head = build_decoder("zoom", *MOBILENET), ShapeHead(32)

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            *levels, boxes = inputs
            index = torch.arange(boxes.shape[0])
            zeros = torch.zeros_like(index)
            return self.head(
                self.decoder(
                    Pyramid(tuple(levels), MOBILENET[1], (64, 64)), Regions(boxes, index, zeros, zeros), "cover"
                )
            )

    torch.manual_seed(0)
    graph, levels = Graph().eval(), make_pyramid(size=64).levels
    corners = torch.rand(50, 2) * 40
    boxes = torch.cat([corners, corners + 2 + torch.rand(50, 2) * 30], dim=1)
    dynamic = torch.export.Dim("n", min=0, max=100)
    exported = torch.export.export(
        graph, (*levels, boxes[:2]), dynamic_shapes=((None, None, None, None, {0: dynamic}),), strict=False
    )
    with torch.no_grad():
        found, expected = exported.module()(*levels, boxes[:count]), graph(*levels, boxes[:count])
    assert found.shape == (count, 1, 64, 64)
    assert torch.allclose(found, expected, atol=1e-5)
