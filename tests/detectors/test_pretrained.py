"""What `weights` means for each detector, and what happens without a connection."""

import time
from urllib.error import HTTPError, URLError

import pytest
import torch
import torchvision

from dasnet_lightning.detectors import DETECTORS, build_detector
from dasnet_lightning.detectors.pretrained import PUBLISHED, resolve_weights
from dasnet_lightning.errors import CheckpointError, ConfigError

WITHOUT = {"ssd_tiny", "transformers"}  # have no published weights that torchvision could download
BACKBONES = {  # torchvision's name of each detector's backbone
    name: next(backbone for backbone in ("mobilenet_v2", "mobilenet_v3_large", "resnet50", "vgg16") if backbone in name)
    for name in PUBLISHED
}


def resolve(name, weights, **options):
    return resolve_weights(name, DETECTORS.get(name), weights, options)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty torch hub folder."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return tmp_path / "checkpoints"


class TestNames:
    def test_every_detector_is_accounted_for(self):
        assert set(DETECTORS.names()) == set(PUBLISHED) | WITHOUT | {"ssd", "boxes"}

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_published_names_are_torchvisions(self, name):
        coco, imagenet = PUBLISHED[name]
        theirs = name.replace("faster_rcnn", "fasterrcnn")
        detectors = torchvision.models.list_models(torchvision.models.detection)
        expected = "COCO_V1" if theirs in detectors else None
        assert coco == expected
        assert imagenet in torchvision.models.get_model_weights(BACKBONES[name]).__members__

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_auto_is_coco_else_imagenet(self, name):
        assert resolve(name, "auto") == (PUBLISHED[name].coco or PUBLISHED[name].imagenet)
        assert resolve(name, "imagenet") == PUBLISHED[name].imagenet
        assert resolve(name, "none") is None
        assert resolve(name, "some.pth") == "some.pth"

    @pytest.mark.parametrize("name", ["ssd", "boxes"])
    def test_a_backbone_by_name_has_imagenet_weights(self, name):
        assert resolve(name, "auto") == "IMAGENET1K_V1"
        assert resolve(name, "auto", backbone="convnext_tiny") == "IMAGENET1K_V1"
        assert resolve(name, "auto", backbone="unknown") is None

    def test_timm_has_a_tag(self):
        pytest.importorskip("timm")
        assert resolve("ssd", "auto", backbone="timm:resnet18") == "a1_in1k"

    @pytest.mark.parametrize("name", sorted(WITHOUT))
    def test_others_start_from_random_weights(self, name):
        assert resolve(name, "auto") is None

    def test_weights_that_are_not_published_are_refused(self):
        with pytest.raises(ConfigError, match=r"'ssd320_vgg16' has no published COCO weights \(it has: imagenet\)"):
            build_detector("ssd320_vgg16", 4, weights="coco")
        with pytest.raises(ConfigError, match=r"'ssd_tiny' has no published ImageNet weights \(it has: none\)"):
            build_detector("ssd_tiny", 4, weights="imagenet")
        with pytest.raises(ConfigError, match="weights is 'coco' and backbone_weights is given too"):
            build_detector("ssd300_vgg16", 4, weights="coco", backbone_weights="COCO_V1")

    def test_an_unknown_name_lists_what_is_known(self):
        with pytest.raises(ConfigError, match=r"the weights 'imagnet' are unknown, .*IMAGENET1K_V1.*path of a file"):
            build_detector("ssd320_mobilenet_v2", 4, weights="imagnet")

    def test_a_random_start_is_reported(self):
        automatic = build_detector("ssd_tiny", 4, weights="auto")
        note = "detector 'ssd_tiny' starts from random weights: no weights are published for it"
        assert automatic.weights_note == note
        assert build_detector("ssd_tiny", 4, weights="none").weights_note.endswith("weights is 'none'")


class TestOffline:
    def test_one_sentence_names_the_file_and_the_folder(self, hub, monkeypatch):
        def refuse(*_, **__):
            raise URLError("Name or service not known")

        monkeypatch.setattr("dasnet_lightning.detectors.downloads.urlopen", refuse)
        with pytest.raises(CheckpointError) as caught:
            build_detector("ssdlite320_mobilenet_v3_large", 4, weights="coco")
        message = str(caught.value)
        assert message.startswith("ssdlite320_mobilenet_v3_large_coco-a79551df.pth: torchvision cannot download")
        assert f"put it into {hub}, or start from random weights with --weights none" in message
        assert "\n" not in message

    def test_a_host_that_does_not_answer_is_given_up(self, hub, monkeypatch):
        def hang(*_, **__):
            time.sleep(0.5)
            raise URLError("timed out")

        monkeypatch.setattr("dasnet_lightning.detectors.downloads.urlopen", hang)
        monkeypatch.setattr("dasnet_lightning.detectors.downloads.CONNECT_SECONDS", 0.1)
        with pytest.raises(CheckpointError, match=r"does not answer\); put it into"):
            build_detector("ssd320_mobilenet_v2", 4, weights="auto")

    def test_timm_is_given_up_as_well(self, monkeypatch, tmp_path):
        hub = pytest.importorskip("huggingface_hub")
        pytest.importorskip("timm")

        def refuse(*_, **__):
            raise URLError("Name or service not known")

        monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("dasnet_lightning.detectors.downloads.urlopen", refuse)
        start = time.monotonic()
        with pytest.raises(
            CheckpointError, match=r"timm cannot download the weights of resnet18\.a1_in1k \(no connection"
        ):
            build_detector("ssd", 4, backbone="timm:resnet18", weights="auto")
        assert time.monotonic() - start < 5

    def test_an_answer_that_is_an_error_still_downloads(self, hub, monkeypatch):
        def answer(request, **_):
            raise HTTPError(request.full_url, 405, "HEAD is not allowed", {}, None)

        state = torchvision.models.mobilenet_v2().state_dict()
        monkeypatch.setattr("dasnet_lightning.detectors.downloads.urlopen", answer)
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
        detector = build_detector("ssd320_mobilenet_v2", 4, weights="auto")
        assert torch.equal(detector.backbone.features[0][0].weight, state["features.0.0.weight"])

    def test_a_file_in_the_folder_needs_no_connection(self, hub):
        hub.mkdir()
        state = torchvision.models.mobilenet_v2().state_dict()
        torch.save(state, hub / "mobilenet_v2-b0353104.pth")
        detector = build_detector("ssd320_mobilenet_v2", 4, weights="imagenet")
        assert torch.equal(detector.backbone.features[0][0].weight, state["features.0.0.weight"])
        assert detector.weights_note == "detector 'ssd320_mobilenet_v2' starts from IMAGENET1K_V1"

    def test_a_damaged_file_in_the_folder_is_named(self, hub):
        hub.mkdir()
        (hub / "mobilenet_v2-b0353104.pth").write_bytes(b"PK\3\4 cut")
        with pytest.raises(CheckpointError, match=r"mobilenet_v2-b0353104\.pth: damaged, delete the file"):
            build_detector("ssd320_mobilenet_v2", 4, weights="imagenet")
