"""Backbones by name: their stages, the loading of their weights, and the error messages."""

import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.backbones import build_backbone
from dasnet_lightning.detectors.optional import import_extra
from dasnet_lightning.errors import CheckpointError, ConfigError

SIZE = (64, 96)


@pytest.fixture(scope="module")
def images():
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 128, 256, 512)),
        ("mobilenet_v2", (24, 32, 96, 1280)),
        ("efficientnet_b0", (24, 40, 112, 1280)),
        ("convnext_tiny", (96, 192, 384, 768)),
        ("regnet_y_400mf", (48, 104, 208, 440)),
        ("mnasnet0_5", (16, 24, 48, 1280)),
    ],
)
def test_stages_of_torchvision_end_where_the_next_one_halves(name, channels, images):
    backbone = build_backbone(name, None, SIZE).eval()
    with torch.no_grad():
        levels, switches = backbone(images)
    assert backbone.strides == (4, 8, 16, 32)
    assert backbone.out_channels == channels
    assert switches is None
    assert [tuple(level.shape) for level in levels] == [
        (1, width, SIZE[0] // stride, SIZE[1] // stride) for width, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_levels_are_those_of_the_network_itself(images):
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", None, SIZE).eval()
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    taps = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        layer.register_forward_hook(lambda _module, _inputs, output: taps.append(output))
    with torch.no_grad():
        network(images)
        assert all(torch.equal(*pair) for pair in zip(backbone(images)[0], taps, strict=True))


@pytest.mark.parametrize("classifier", [True, False])
def test_weights_of_torchvision_come_from_a_file(classifier, tmp_path, images):
    network = torchvision.models.mobilenet_v3_small().eval()
    state = {key: value for key, value in network.state_dict().items() if classifier or "classifier" not in key}
    torch.save(state, tmp_path / "weights.pth")
    backbone = build_backbone("mobilenet_v3_small", str(tmp_path / "weights.pth"), SIZE)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images)[0][-1], network.features(images))
    with pytest.raises(CheckpointError, match=r"torchvision's resnet18.*missing: conv1.weight"):
        build_backbone("resnet18", str(tmp_path / "weights.pth"), SIZE)


def test_norm_is_held_where_weights_are_given(tmp_path, images):
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path / "weights.pth")
    for freeze, moves in ((None, False), (False, True)):
        backbone = build_backbone("mobilenet_v3_small", str(tmp_path / "weights.pth"), SIZE, freeze).train()
        before = {key: value.clone() for key, value in backbone.state_dict().items()}
        backbone(images.expand(2, -1, -1, -1))
        after = backbone.state_dict()
        assert any(not torch.equal(value, after[key]) for key, value in before.items()) == moves
        norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert all(p.requires_grad == moves for norm in norms for p in norm.parameters())


class TestTimm:
    @pytest.fixture(autouse=True)
    def timm(self):
        return pytest.importorskip("timm")

    @pytest.mark.parametrize(
        ("name", "strides", "channels"),
        [
            ("test_resnet", (4, 8, 16, 32), (32, 48, 192, 96)),
            ("test_vit", (16,), (64,)),  # its maps all have one stride: the last one counts
            ("swin_tiny_patch4_window7_224", (4, 8, 16, 32), (96, 192, 384, 768)),  # channels last, of a fixed size
        ],
    )
    def test_levels(self, name, strides, channels, images):
        backbone = build_backbone(f"timm:{name}", None, SIZE).eval()
        assert backbone.strides == strides
        assert backbone.out_channels == channels
        with torch.no_grad():
            levels, _ = backbone(images)
        assert [tuple(level.shape) for level in levels] == [
            (1, width, SIZE[0] // stride, SIZE[1] // stride) for width, stride in zip(channels, strides, strict=True)
        ]

    def test_weights_come_from_a_file_of_the_whole_network(self, timm, tmp_path, images):
        network = timm.create_model("test_resnet", num_classes=3).eval()
        save_file(network.state_dict(), tmp_path / "weights.safetensors")
        backbone = build_backbone("timm:test_resnet", str(tmp_path / "weights.safetensors"), SIZE).eval()
        with torch.no_grad():
            assert torch.allclose(backbone(images)[0][-1], network.forward_features(images), atol=1e-6)
        assert len(backbone.frozen_norms) > 0

    def test_weights_that_do_not_fit_are_refused(self, tmp_path):
        save_file({"conv.weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
        with pytest.raises(CheckpointError, match=r"timm's test_resnet; missing: conv1.*unexpected: conv.weight"):
            build_backbone("timm:test_resnet", str(tmp_path / "foreign.safetensors"), SIZE)
        with pytest.raises(CheckpointError, match="no such file"):
            build_backbone("timm:test_resnet", str(tmp_path / "nowhere.pth"), SIZE)

    def test_an_unknown_name_answers_with_names_like_it(self):
        with pytest.raises(ConfigError, match=r"no model 'resnet1', similar names: .*resnet18"):
            build_backbone("timm:resnet1", None, SIZE)

    def test_the_ssd_gets_extra_levels_up_to_six(self):
        detector = build_detector("ssd", 4, backbone="timm:test_vit", image_size=64)
        assert detector.strides == (16, 32, 64, 128, 256, 512)
        assert detector.head_levels == (0, 1, 2, 3, 4, 5)
        with pytest.raises(ConfigError, match="no level at stride 8"):
            build_detector("ssd", 4, backbone="timm:test_vit", image_size=64, head_stride8=True)


def test_boxes_at_stride_8_on_demand():
    detector = build_detector("ssd", 4, image_size=64, head_stride8=True)
    assert detector.strides[detector.head_levels[0]] == 8
    assert len(detector.head_levels) == len(detector.heads) == 7


def test_an_unknown_backbone_answers_with_the_names():
    with pytest.raises(
        ConfigError, match=r"backbone is 'resnet17', expected one of torchvision's .*resnet18.*timm:NAME"
    ):
        build_detector("boxes", 4, backbone="resnet17")


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm is not installed, .*pip install 'dasnet-lightning\[timm\]'"):
        build_detector("ssd", 4, backbone="timm:test_resnet")
    with pytest.raises(ModuleNotFoundError, match=r"dasnet_lightning\.nowhere"):  # a fault of ours is no missing extra
        import_extra("dasnet_lightning.nowhere", "timm")
