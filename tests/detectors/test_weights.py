import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.layers import FrozenBatchNorm
from dasnet_lightning.detectors.ssd.ssd320_vgg16 import VGG16, load_vgg16
from dasnet_lightning.detectors.ssd.ssd_tiny import TinyBackbone
from dasnet_lightning.detectors.weights import load_state, load_state_file
from dasnet_lightning.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def mobilenet_state():
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v2().state_dict()


def save(state, path):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors", "wrapped.pth"])
def test_mobilenet_loads_from_a_file(tmp_path, mobilenet_state, name):
    state = {"state_dict": mobilenet_state} if name == "wrapped.pth" else mobilenet_state
    detector = build_detector("ssd320_mobilenet_v2", 4, backbone_weights=save(state, tmp_path / name))
    assert torch.equal(detector.backbone.features[18][0].weight, mobilenet_state["features.18.0.weight"])
    assert torch.equal(detector.backbone.features[0][1].running_var, mobilenet_state["features.0.1.running_var"])


def test_real_weights_give_the_same_features_as_torchvision(shared):
    path = shared / "weights" / "mobilenet_v2_in1k.pth"
    detector = build_detector("ssd320_mobilenet_v2", 4, backbone_weights=str(path)).train()
    reference = torchvision.models.mobilenet_v2()
    reference.load_state_dict(torch.load(path, weights_only=True))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        normal = (images - detector.mean) / detector.std
        torch.testing.assert_close(detector.features(images).levels[3], reference.eval().features(normal))


def test_norm_is_frozen_with_weights_only(tmp_path, mobilenet_state):
    path = save(mobilenet_state, tmp_path / "m.pth")
    frozen = build_detector("ssd320_mobilenet_v2", 4, backbone_weights=path).train()
    before = {key: value.clone() for key, value in frozen.state_dict().items() if "running" in key}
    frozen.features(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(frozen.state_dict()[key], value) for key, value in before.items())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in frozen.modules())
    learning = build_detector("ssd320_mobilenet_v2", 4)
    assert not any(isinstance(layer, FrozenBatchNorm) for layer in learning.modules())
    learning.load_state_dict(frozen.state_dict())  # so that a trained model needs no weight file to be rebuilt
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(frozen.eval().features(images).levels, learning.eval().features(images).levels, strict=True)
        assert all(torch.equal(first, second) for first, second in pairs)


def test_frozen_blocks_do_not_learn():
    detector = build_detector("ssd320_mobilenet_v2", 4, freeze_norm=True, frozen_blocks=4)
    learning = {key.split(".")[2] for key, p in detector.named_parameters() if "features" in key and p.requires_grad}
    assert learning == {str(number) for number in range(4, 19)}


def test_tiny_takes_the_backbone_of_another(tmp_path):
    state = TinyBackbone().state_dict()
    detector = build_detector("ssd_tiny", 4, backbone_weights=save(state, tmp_path / "t.pth"))
    assert torch.equal(detector.backbone.stem[0].weight, state["stem.0.weight"])


def test_torchvisions_name_is_downloaded_by_torchvision(monkeypatch, mobilenet_state):
    asked = []

    def download(url, **options):
        asked.append(url)
        return mobilenet_state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    monkeypatch.setattr("dasnet_lightning.detectors.downloads.check_connection", lambda url: None)
    detector = build_detector("ssd320_mobilenet_v2", 4, backbone_weights="IMAGENET1K_V1")
    assert asked == [torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.url]
    assert torch.equal(detector.backbone.features[0][0].weight, mobilenet_state["features.0.0.weight"])
    assert load_state("MobileNet_V2_Weights.IMAGENET1K_V1", "mobilenet_v2") == mobilenet_state


def test_an_unknown_name_answers_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'IMAGENET'.*IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        build_detector("ssd320_mobilenet_v2", 4, backbone_weights="IMAGENET")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        build_detector("ssd320_mobilenet_v2", 4, backbone_weights=str(tmp_path / "nowhere.pth"))


DAMAGED = {
    "text.pth": "it is an HTML page",
    "text.safetensors": "it is an HTML page",
    "empty.pth": r"it is empty \(zero bytes\)",
    "cut.pth": "truncated or damaged",
    "cut.safetensors": "truncated or damaged",
    "flipped.pth": "damaged: the bytes of its part 'flipped/data/0' have changed",
    "code.pth": "refused: reading it would run code, 'torch.nn.modules.activation.ReLU'",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    save(nn.ReLU() if name == "code.pth" else {"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    changed = {
        "cut": whole[:2000],
        "text": b"<html>not found</html>",
        "empty": b"",
        "flipped": whole[:3000] + b"1" + whole[3001:],
    }
    path.write_bytes(changed.get(path.stem, whole))
    with pytest.raises(CheckpointError, match=rf"{name}: .*{DAMAGED[name]}") as caught:
        load_state_file(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: not a state dict"):
        load_state_file(tmp_path / "x.pth")


def test_foreign_weights_list_the_first_keys(tmp_path, mobilenet_state):
    state = {key: value for key, value in mobilenet_state.items() if not key.startswith("features.18")}
    state["features.0.0.weight"] = torch.zeros(32, 1, 3, 3)
    state["features.99.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        build_detector("ssd320_mobilenet_v2", 4, backbone_weights=save(state, tmp_path / "foreign.pth"))
    message = str(caught.value)
    assert "foreign.pth: does not fit, expected the state dict of torchvision's mobilenet_v2" in message
    assert "missing: 18.0.weight, 18.1.weight, 18.1.bias and 2 more" in message
    assert "unexpected: 99.weight" in message
    assert "wrong shape: 0.0.weight (32, 1, 3, 3) instead of (32, 3, 3, 3)" in message


def vgg_state(classifier):
    """Return a state dict of torchvision's vgg16 with few distinct values, whose large classifier needs no memory."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in torchvision.models.vgg16().state_dict().items()}
    state = {}
    for number, (key, shape) in enumerate(shapes.items()):
        if key.startswith("features."):
            state[key] = torch.full((), float(number)).expand(shape)
        elif key.endswith("weight") and classifier == "trained":
            state[key] = torch.arange(shape[1], dtype=torch.float32).expand(shape)
        elif classifier != "absent":
            state[key] = torch.full((), float("nan") if classifier == "nan" else 5.0).expand(shape)
    return state


@pytest.fixture(scope="module")
def vgg16():
    return VGG16()


@pytest.mark.parametrize("classifier", ["trained", "nan", "absent"])
def test_vgg16_loads_features_and_decimates_the_classifier(vgg16, classifier):
    state = vgg_state(classifier)
    with torch.no_grad():
        vgg16.fc6.bias.zero_()
    load_vgg16(vgg16, state, "file.pth")
    convolutions = [layer for layer in vgg16.stages.modules() if isinstance(layer, nn.Conv2d)]
    theirs = [key for key in state if key.startswith("features.") and key.endswith("weight")]
    assert [layer.weight.flatten()[0].item() for layer in convolutions] == [
        state[key].flatten()[0].item() for key in theirs
    ]
    assert vgg16.fc6.weight.isfinite().all()
    assert vgg16.fc6.bias[0].item() == (5.0 if classifier == "trained" else 0.0)
    if classifier == "trained":  # unit 4i, channel c, place (3y, 3x) of the 7x7 window; each value is its own column
        assert vgg16.fc6.weight[7, 2, 1, 2].item() == 2 * 49 + 3 * 7 + 6
        assert vgg16.fc7.weight[3, 9, 0, 0].item() == 4 * 9
