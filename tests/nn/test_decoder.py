import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dasnet_lightning.errors import ConfigError, UnknownNameError
from dasnet_lightning.nn.decoder import DECODERS, BoxDecoder, MapDecoder, build_decoder
from dasnet_lightning.nn.decoder.light import PositionNorm
from dasnet_lightning.types import Pyramid, Regions

PYRAMIDS = {
    "vgg": ((512, 1024, 512, 256, 256, 256), (8, 16, 32, 64, 107, 320), (40, 20, 10, 5, 3, 1)),
    "mobilenet": ((24, 32, 96, 1280, 256, 256, 128), (4, 8, 16, 32, 64, 107, 160), (80, 40, 20, 10, 5, 3, 2)),
    "fpn": ((256,) * 5, (4, 8, 16, 32, 64), (80, 40, 20, 10, 5)),
}


def make_pyramid(kind: str, regions: int, smaller: int = 1) -> Pyramid:
    """Return the pyramid of images of 320 pixels, or of images that are smaller by a factor."""
    channels, strides, sizes = PYRAMIDS[kind]
    levels = tuple(torch.randn(regions, c, *[max(s // smaller, 1)] * 2) for c, s in zip(channels, sizes, strict=True))
    return Pyramid(levels, strides, (320 // smaller, 320 // smaller))


def make_regions(count: int) -> Regions:
    """Return boxes in images of 64 pixels, each a region of its own."""
    boxes = torch.tensor([[8.0, 4, 40, 60], [20.5, 10, 64, 33.3], [0, 0, 7, 9]])[:count]
    index = torch.arange(count)
    return Regions(boxes, index, index % 2, torch.ones_like(index))


@pytest.mark.parametrize("kind", PYRAMIDS)
@pytest.mark.parametrize("name", DECODERS.names())
@pytest.mark.parametrize("regions", [0, 1, 2])
def test_any_pyramid_decodes_and_every_parameter_learns(name, kind, regions):
    torch.manual_seed(0)
    channels, strides, _ = PYRAMIDS[kind]
    decoder = build_decoder(name, channels, strides)
    if isinstance(decoder, MapDecoder):
        features = decoder(make_pyramid(kind, regions, smaller=5))
        size = 64 // decoder.out_stride
    else:
        assert isinstance(decoder, BoxDecoder)
        features = decoder(make_pyramid(kind, 2, smaller=5), make_regions(regions), "cover")
        size = 32
    assert features.shape == (regions, decoder.out_channels, size, size)
    features.square().sum().backward()
    assert [key for key, p in decoder.named_parameters() if p.grad is None or bool(p.grad.any()) != (regions > 0)] == []


@pytest.mark.parametrize("kind", PYRAMIDS)
def test_light_decoder_stays_below_one_gmac_a_region(kind):
    channels, strides, _ = PYRAMIDS[kind]
    decoder = build_decoder("light", channels, strides)
    with FlopCounterMode(display=False) as counter:
        decoder(make_pyramid(kind, 1))
    assert counter.get_total_flops() / 2 <= 1e9


def test_regions_do_not_influence_each_other():
    decoder = build_decoder("light", *PYRAMIDS["fpn"][:2])
    both = make_pyramid("fpn", 2)
    alone = Pyramid(tuple(level[1:] for level in both.levels), both.strides, both.size)
    assert torch.allclose(decoder(both)[1], decoder(alone)[0], atol=1e-5)


def test_position_norm_keeps_zeros_and_positions_apart():
    norm = PositionNorm(4)
    features = torch.randn(1, 4, 3, 3)
    features[..., 1, 1] = 0
    normed = norm(features)
    assert torch.equal(normed[..., 1, 1], torch.zeros(1, 4))
    changed = features.clone()
    changed[..., 0, 0] *= 5
    assert torch.equal(norm(changed)[..., 2, 2], normed[..., 2, 2])


def test_unknown_decoder_names_the_known_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'light'"):
        build_decoder("ligth", (8,), (4,))


def test_widths_of_the_light_decoder_may_come_from_a_file():
    channels, strides, _ = PYRAMIDS["fpn"]
    assert build_decoder("light", channels, strides, widths=[8, 12, 16]).out_channels == 8
    with pytest.raises(ConfigError, match=r"widths is \[8\], expected three"):
        build_decoder("light", channels, strides, widths=[8])
