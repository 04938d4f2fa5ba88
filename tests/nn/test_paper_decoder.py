"""The paper's decoder compared with the table of paper.md section 3, which is repeated here and computed by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dasnet_lightning.detectors import DETECTORS
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.attention import attend
from dasnet_lightning.functional.pooling import PoolShape, max_pool_with_switches
from dasnet_lightning.models.dasnet import DASNet, build_dasnet
from dasnet_lightning.nn.decoder import build_decoder
from dasnet_lightning.nn.decoder.layers import CoarseNorm
from dasnet_lightning.nn.decoder.unpooling import UnpoolingDecoder
from dasnet_lightning.nn.decoder.upsampling import UpsamplingDecoder
from dasnet_lightning.types import Pyramid, Regions

# name, channels in and out, kernel, stride, padding, output padding, dilation, output size at 320x320
TABLE = (
    ("deconv9_2", 256, 128, 3, 1, 0, 0, 1, 3),
    ("deconv9_1", 128, 256, 1, 1, 0, 0, 1, 3),
    ("deconv8_2", 512, 128, 3, 1, 0, 0, 1, 5),
    ("deconv8_1", 128, 256, 1, 1, 0, 0, 1, 5),
    ("deconv7_2", 512, 128, 3, 2, 1, 1, 1, 10),
    ("deconv7_1", 128, 512, 1, 1, 0, 0, 1, 10),
    ("deconv6_2", 1024, 256, 3, 2, 1, 1, 1, 20),
    ("deconv6_1", 256, 1024, 1, 1, 0, 0, 1, 20),
    ("defc7", 2048, 1024, 1, 1, 0, 0, 1, 20),
    ("defc6", 1024, 512, 3, 1, 6, 0, 6, 20),
    ("deconv5_3", 512, 512, 3, 1, 1, 0, 1, 20),
    ("deconv5_2", 512, 512, 3, 1, 1, 0, 1, 20),
    ("deconv5_1", 512, 512, 3, 1, 1, 0, 1, 20),
    ("deconv4_3", 1024, 512, 3, 1, 1, 0, 1, 40),
    ("deconv4_2", 512, 512, 3, 1, 1, 0, 1, 40),
    ("deconv4_1", 512, 256, 3, 1, 1, 0, 1, 40),
    ("deconv3_3", 256, 256, 3, 1, 1, 0, 1, 80),
    ("deconv3_2", 256, 256, 3, 1, 1, 0, 1, 80),
    ("deconv3_1", 256, 128, 3, 1, 1, 0, 1, 80),
    ("deconv2_2", 128, 128, 3, 1, 1, 0, 1, 160),
    ("deconv2_1", 128, 64, 3, 1, 1, 0, 1, 160),
    ("deconv1_2", 64, 64, 3, 1, 1, 0, 1, 320),
    ("deconv1_1", 64, 64, 3, 1, 1, 0, 1, 320),
)
COARSE = 8  # layers with BatchNorm
CONCAT_AFTER = {"deconv9_1": 4, "deconv8_1": 3, "deconv7_1": 2, "deconv6_1": 1}  # level of the pyramid
UNPOOL_BEFORE = {"deconv5_3": 5, "deconv4_3": 4, "deconv3_3": 3, "deconv2_2": 2, "deconv1_2": 1}
VGG = ((512, 1024, 512, 256, 256, 256), (8, 16, 32, 64, 100, 320))
POOLS = (*[PoolShape(2, 2, 0)] * 4, PoolShape(3, 1, 1))


def on_meta(detector: str, decoder: str, size: tuple[int, int] = (320, 320)) -> tuple[DASNet, Pyramid]:
    """Build a model on the meta device, which is sufficient to count parameters and operations."""
    with torch.device("meta"):
        model = build_dasnet(21, detector, decoder=decoder).eval()
        return model, model.detector.features(torch.rand(1, 3, *size))


def convolutions(decoder: nn.Module) -> list[nn.Module]:
    return [layer for layer in decoder.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]


def gmac(module: nn.Module, *inputs) -> float:
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2e9


def small_pyramid(regions: int) -> Pyramid:
    """Return a pyramid with VGG16's channels over images of 96 pixels, with the switches of real poolings."""
    sizes, maps = (12, 6, 3, 2, 1, 1), ((64, 96), (128, 48), (256, 24), (512, 12), (512, 6))
    levels = tuple(torch.rand(regions, c, s, s) for c, s in zip(VGG[0], sizes, strict=True))
    unpooled = [torch.randn(regions, channels, side, side) for channels, side in maps]
    switches = tuple(max_pool_with_switches(x, *pool)[1] for x, pool in zip(unpooled, POOLS, strict=True))
    return Pyramid(levels, VGG[1], (96, 96), switches)


class TestTable:
    def test_parameters(self):
        """The weights of the table are 28.15 M; here with biases and BatchNorm, without the score layer."""
        model, _ = on_meta("ssd320_vgg16", "paper")
        weights = sum(layer.weight.numel() for layer in convolutions(model.decoder))
        assert weights == sum(row[1] * row[2] * row[3] ** 2 for row in TABLE) == 28_147_712
        assert sum(p.numel() for p in model.decoder.parameters()) == 28_158_400 == pytest.approx(28.15e6, rel=0.005)

    def test_operations(self):
        """Operations per region or image of the decoder without a score layer, the score layers and the detector."""
        model, pyramid = on_meta("ssd320_vgg16", "paper")
        assert gmac(model.decoder, pyramid) == pytest.approx(41.8, rel=0.01)
        features = model.decoder(pyramid)
        assert gmac(model.head, features) == pytest.approx(0.118, rel=0.01)
        with torch.device("meta"):
            assert gmac(nn.Conv2d(64, 98, 3, padding=1), features) == pytest.approx(5.8, rel=0.01)
        detector = model.detector.detector
        images = torch.rand(1, 3, 320, 320, device="meta")
        assert gmac(lambda x: detector.predict(detector.features(x)), images) == pytest.approx(35.2, rel=0.01)

    def test_layers_and_sizes(self):
        model, pyramid = on_meta("ssd320_vgg16", "paper")
        layers, seen = convolutions(model.decoder), []
        for layer in layers:
            layer.register_forward_hook(lambda layer, args, out: seen.append((args[0].shape[1], *out.shape[1:])))
        features = model.decoder(pyramid)
        assert seen == [(row[1], row[2], row[8], row[8]) for row in TABLE]
        assert features.shape == (1, 64, 320, 320)
        for layer, (_, _, _, kernel, stride, padding, output_padding, dilation, _) in zip(layers, TABLE, strict=True):
            assert layer.kernel_size == (kernel, kernel)
            assert layer.stride == (stride, stride)
            assert layer.dilation == (dilation, dilation)
            transposed = isinstance(layer, nn.ConvTranspose2d)
            assert transposed == (output_padding == 1)
            as_convolution = dilation * (kernel - 1) - padding
            assert layer.padding[0] == (padding if transposed else as_convolution)
        norms = [module for module in model.decoder.modules() if isinstance(module, nn.BatchNorm2d)]
        assert [norm.num_features for norm in norms] == [row[2] for row in TABLE[:COARSE]]
        assert {norm.eps for norm in norms} == {1e-3}

    def test_equals_the_table_computed_by_hand(self):
        torch.manual_seed(0)
        model = build_dasnet(3, "ssd320_vgg16", decoder="paper").eval()
        for norm in [module for module in model.decoder.modules() if isinstance(module, nn.BatchNorm2d)]:
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(values, 0.01, 0.02) if values is norm.running_var else nn.init.uniform_(values)
        for layer in convolutions(model.decoder)[COARSE:]:
            nn.init.uniform_(layer.bias, -0.1, 0.1)
        unpooled: list[Tensor] = []
        for stage in model.detector.detector.backbone.stages:
            stage.register_forward_hook(lambda stage, args, out: unpooled.append(out))
        boxes = torch.tensor([[30.0, 41, 203, 210], [150, 10, 300, 297]])
        regions = Regions(boxes, torch.tensor([0, 0]), torch.tensor([0]), torch.tensor([1]))
        with torch.no_grad():
            pyramid = model.detector.features(torch.rand(1, 3, 320, 320))
            features = model.decoder(attend(pyramid, regions))
            expected = compute_table(model.decoder, [mask(level, boxes) for level in pyramid.levels], unpooled)
        assert expected.std() > 0.01  # else nothing was compared
        assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()

    def test_starts_as_the_paper_does(self):
        torch.manual_seed(0)
        decoder = build_decoder("paper", *VGG, POOLS)
        for number, layer in enumerate(convolutions(decoder.requires_grad_(False))):
            if number < COARSE:
                assert layer.bias is None  # BatchNorm's is 0
                assert float(layer.weight.std()) == pytest.approx(0.01, rel=0.03)
            else:
                assert not layer.bias.any()
                fans = (layer.in_channels + layer.out_channels) * layer.kernel_size[0] ** 2
                assert float(layer.weight.std()) == pytest.approx((2 / fans) ** 0.5, rel=0.03)


def mask(level: Tensor, boxes: Tensor) -> Tensor:
    """Compute eq. (1) by slicing."""
    result, cells = torch.zeros_like(level), level.shape[-1]
    for box in boxes:
        x0, y0 = (int(side * cells // 320) for side in box[:2])
        x1, y1 = (int(-(-side * cells // 320)) for side in box[2:])
        result[..., y0:y1, x0:x1] = level[..., y0:y1, x0:x1]
    return result


def compute_table(decoder: nn.Module, levels: list[Tensor], unpooled: list[Tensor]) -> Tensor:
    """Run the table row by row, with real transposed convolutions and torch's own pooling and unpooling."""
    x, layers = levels[5], convolutions(decoder)
    norms = [module for module in decoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for number, (name, _, _, _, stride, padding, output_padding, dilation, _) in enumerate(TABLE):
        if name in UNPOOL_BEFORE:
            pool = UNPOOL_BEFORE[name]
            shape = (3, 1, 1) if pool == 5 else (2, 2, 0)
            before = unpooled[pool - 1].contiguous()
            address = F.max_pool2d(before, *shape, return_indices=True)[1]
            x = F.max_unpool2d(x.contiguous(), address, *shape, output_size=before.shape[2:])
            x = torch.cat([x, levels[0]], dim=1) if pool == 4 else x
        layer = layers[number]
        kernel = layer.weight if stride == 2 else layer.weight.flip(2, 3).transpose(0, 1)
        x = F.conv_transpose2d(x, kernel, layer.bias, stride, padding, output_padding, dilation=dilation)
        if number < COARSE:
            norm = norms[number]
            shape = (1, -1, 1, 1)
            x = (x - norm.running_mean.view(shape)) / torch.sqrt(norm.running_var.view(shape) + 1e-3)
            x = x * norm.weight.view(shape) + norm.bias.view(shape)
        x = x.clamp(min=0)
        x = torch.cat([x, levels[CONCAT_AFTER[name]]], dim=1) if name in CONCAT_AFTER else x
    return x


class TestUnpooling:
    @pytest.mark.parametrize("size", [(300, 300), (257, 301)])
    def test_sizes_follow_the_encoder(self, size):
        """At 300 pixels pool3 and conv6_2 have odd input sizes: 75 and 19."""
        model, pyramid = on_meta("ssd320_vgg16", "paper", size)
        seen = []
        for block in model.decoder.coarse:
            for part in block.widen:
                part.register_forward_hook(lambda part, args, out: seen.append(out.shape[2:]))
        for stage in model.decoder.stages:
            stage.register_forward_hook(lambda stage, args, out: seen.append(out.shape[2:]))
        resized = [up for block in model.decoder.coarse for up in block.ups]
        for up in resized:
            up.norm.register_forward_hook(lambda part, args, out: seen.append(out.shape[2:]))
        assert model.decoder(pyramid).shape == (1, 64, *size)
        levels = {tuple(level.shape[2:]) for level in pyramid.levels}
        poolings = {tuple(codes.shape[2:]) for codes in pyramid.switches}
        # also what leaves a transposed convolution has its level's size already: nothing had to be resized
        assert {tuple(shape) for shape in seen} <= levels | poolings | {size}

    @pytest.mark.parametrize("regions", [0, 1, 3])
    def test_every_parameter_learns(self, regions):
        torch.manual_seed(0)
        decoder = build_decoder("paper", *VGG, POOLS).to(memory_format=torch.channels_last)
        assert isinstance(decoder, UnpoolingDecoder)
        features = decoder(small_pyramid(regions))
        assert features.shape == (regions, 64, 96, 96)
        features.square().sum().backward()
        missing = [k for k, p in decoder.named_parameters() if p.grad is None or bool(p.grad.any()) != (regions > 0)]
        assert missing == []
        assert all(p.grad.isfinite().all() for p in decoder.parameters())

    def test_each_region_is_unpooled_by_its_own_images_switches(self):
        """In evaluation a region has the same features alone and in a batch."""
        torch.manual_seed(0)
        decoder = build_decoder("paper", *VGG, POOLS).eval()
        images = small_pyramid(2)
        boxes = torch.tensor([[8.0, 8, 60, 90], [20, 30, 96, 96], [0, 0, 96, 50]])
        together = Regions(boxes, torch.arange(3), torch.tensor([1, 0, 1]), torch.tensor([1, 2, 3]))
        with torch.no_grad():
            features = decoder(attend(images, together))
            for number in range(3):
                alone = decoder(attend(images, together.select(number, number + 1)))
                assert torch.allclose(features[number], alone[0], atol=1e-5 * float(features.max()))
            both = attend(images, together)
            swapped = decoder(
                Pyramid(both.levels, both.strides, both.size, tuple(c.roll(-1, 0) for c in both.switches))
            )
        assert not torch.allclose(features[0], swapped[0], atol=0.1 * float(features.max()))

    def test_channels_last_changes_nothing(self):
        torch.manual_seed(0)
        decoder = build_decoder("paper", *VGG, POOLS).eval()
        pyramid = small_pyramid(2)
        with torch.no_grad():
            expected = decoder(pyramid)
            levels, switches = (
                tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)
                for parts in (pyramid.levels, pyramid.switches)
            )
            decoder.to(memory_format=torch.channels_last)
            features = decoder(Pyramid(levels, pyramid.strides, pyramid.size, switches))
        assert features.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(features, expected, atol=1e-5 * float(expected.max()))

    @pytest.mark.parametrize(("out_stride", "channels"), [(16, 512), (8, 256), (4, 128), (2, 64), (1, 64)])
    def test_out_stride_stops_earlier(self, out_stride, channels):
        decoder = build_decoder("paper", *VGG, POOLS, out_stride=out_stride)
        assert (decoder.out_channels, decoder.out_stride) == (channels, out_stride)
        with torch.no_grad():
            assert decoder(small_pyramid(1)).shape == (1, channels, 96 // out_stride, 96 // out_stride)

    def test_errors_say_what_does_not_fit(self):
        with pytest.raises(ConfigError, match="unpools VGG16 only"):
            build_decoder("paper", *VGG, POOLS[:4])
        with pytest.raises(ConfigError, match="unpools VGG16 only"):
            build_decoder("paper", (256, *VGG[0][1:]), VGG[1], POOLS)
        with pytest.raises(ConfigError, match="out_stride is 3"):
            build_decoder("paper", *VGG, POOLS, out_stride=3)
        with pytest.raises(ConfigError, match="widths"):
            build_decoder("paper", *VGG, POOLS, widths=(8, 8, 8, 8))
        pyramid = small_pyramid(1)
        with pytest.raises(ConfigError, match="no switches"):
            build_decoder("paper", *VGG, POOLS)(Pyramid(pyramid.levels, pyramid.strides, pyramid.size))


class TestUpsampling:
    @pytest.mark.parametrize("size", [(320, 320), (300, 333)])
    # `transformers` is built from an option
    @pytest.mark.parametrize("name", [name for name in DETECTORS.names() if name != "transformers"])
    def test_every_detector_is_decoded_to_the_size_of_the_image(self, name, size):
        model, pyramid = on_meta(name, "paper", size)
        features = model.decoder(pyramid)
        assert features.shape == (1, model.decoder.out_channels, *size)
        assert isinstance(model.decoder, UpsamplingDecoder if pyramid.switches is None else UnpoolingDecoder)

    def test_strides_of_16_and_more_follow_the_letter_and_are_normalized(self):
        channels = (24, 32, 96, 1280, 512, 256)
        decoder = build_decoder("paper", channels, (4, 8, 16, 32, 64, 128))
        assert [block.widen[0].out_channels for block in decoder.coarse] == [512, 1280, 96]
        assert all(isinstance(module.norm, CoarseNorm) for block in decoder.coarse for module in block.ups)
        assert [layer.out_channels for layer in convolutions(decoder.fine)] == [256, 256, 128, 128, 64, 64, 64, 64]
        assert not [module for module in decoder.fine.modules() if isinstance(module, CoarseNorm)]

    @pytest.mark.parametrize(
        ("strides", "sizes", "out_stride", "doublings", "ends"),
        [
            ((8, 16, 32, 64, 100, 320), (40, 20, 10, 5, 3, 1), 1, [2, 1, 1, 1, 1, 1, 1, 1], 1),
            ((4, 16), (80, 20), 2, [2, 1], 2),
            ((16, 32), (20, 10), 4, [1, 1, 1], 4),
            ((4, 8, 16), (80, 40, 20), 8, [1], 8),
            ((4, 8), (80, 40), 32, [], 8),
        ],
    )
    def test_gaps_between_strides_and_early_ends(self, strides, sizes, out_stride, doublings, ends):
        with torch.device("meta"):
            decoder = build_decoder("paper", (8,) * len(strides), strides, out_stride=out_stride)
            levels = tuple(torch.rand(1, 8, side, side) for side in sizes)
        assert [len(block.ups) for block in [*decoder.coarse, *decoder.fine]] == doublings
        assert decoder.out_stride == ends
        assert decoder(Pyramid(levels, strides, (320, 320))).shape == (
            1,
            decoder.out_channels,
            320 // ends,
            320 // ends,
        )

    def test_widths_are_an_option(self):
        decoder = build_decoder("paper", (8, 12), (4, 8), widths=(4, 6, 10, 16))
        assert [layer.out_channels for layer in convolutions(decoder)] == [10, 10, 6, 6, 4, 4]
        assert decoder.out_channels == 4
        with pytest.raises(ConfigError, match="power of two"):
            build_decoder("paper", (8, 12), (4, 8), out_stride=3)


def test_one_cell_of_one_region_is_normalized_as_in_evaluation():
    norm = CoarseNorm(3)
    nn.init.uniform_(norm.norm.running_mean)
    cell = torch.randn(1, 3, 1, 1)
    assert torch.equal(norm.train()(cell), norm.eval()(cell))
    many = torch.randn(2, 3, 4, 4)
    assert not torch.allclose(norm.train()(many), norm.eval()(many))
