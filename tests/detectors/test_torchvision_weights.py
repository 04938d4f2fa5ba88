"""Detectors that torchvision has too: its whole state dicts load, and the outputs are then the same."""

import pytest
import torch
import torchvision
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from dasnet_lightning.detectors import build_detector, portable_options
from dasnet_lightning.detectors.ssd.anchors import make_anchors
from dasnet_lightning.detectors.weights import upgrade_keys
from dasnet_lightning.errors import CheckpointError, ConfigError

TORCHVISION = {  # where the names differ
    "faster_rcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn",
    "faster_rcnn_resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2",
    "faster_rcnn_mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn",
}
PARAMETERS = {  # that learn, for three classes and background; untrained, so that all of them do
    "faster_rcnn_mobilenet_v2_fpn": 6_632_227,
    "faster_rcnn_mobilenet_v3_large_320_fpn": 18_964_879,
    "faster_rcnn_resnet50_fpn": 41_362_531,
    "faster_rcnn_resnet50_fpn_v2": 43_266_403,
    "fcos_resnet50_fpn": 32_122_185,
    "retinanet_resnet50_fpn_v2": 36_394_120,
    "ssd300_mobilenet_v2": 4_056_136,
    "ssd300_vgg16": 24_013_232,
    "ssd320_mobilenet_v2": 5_172_576,
    "ssd320_vgg16": 24_013_232,
    "ssd_tiny": 942_480,
    "ssdlite320_mobilenet_v3_large": 2_234_240,
}
OWN = {"faster_rcnn_mobilenet_v2_fpn", "ssd300_mobilenet_v2", "ssd320_mobilenet_v2", "ssd320_vgg16", "ssd_tiny"}
SAME = sorted(set(PARAMETERS) - OWN)
LOADED = sorted(set(SAME) - {"faster_rcnn_resnet50_fpn"})  # one of each kind of keys; the first is v2's without norms


def reference(name, num_classes):
    return torchvision.models.get_model(
        TORCHVISION.get(name, name), weights=None, weights_backbone=None, num_classes=num_classes
    )


def learning(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    with torch.device("meta"):
        assert learning(build_detector(name, 4)) == PARAMETERS[name]


@pytest.mark.parametrize("name", SAME)
def test_number_of_parameters_is_torchvisions(name):
    with torch.device("meta"):
        assert learning(build_detector(name, 91)) == learning(reference(name, 91))


def raw_answers(name, ours, theirs, images):
    """Return the outputs of both models' heads for the same normalized images, as pairs of tensors."""
    normal = theirs.transform.normalize(images)
    pyramid = ours.features(images)
    maps = theirs.backbone(normal)
    if name.startswith("faster_rcnn"):
        levels = list(maps.values())
        mine = pyramid.levels[ours.backbone.raw_levels :]
        yield from zip(mine, levels, strict=True)
        for mine_part, part in zip(ours.rpn.head(list(mine)), theirs.rpn.head(levels), strict=True):
            yield from zip(mine_part, part, strict=True)
        regions = torch.randn(3, 256, 7, 7)
        for heads in (ours.roi_heads, theirs.roi_heads):
            assert heads.box_roi_pool.featmap_names[0] == "0"
        pairs = [heads.box_predictor(heads.box_head(regions)) for heads in (ours.roi_heads, theirs.roi_heads)]
        yield from zip(*pairs, strict=True)
        return
    outputs = theirs.head(list(maps.values()))
    predicted = ours.predict(pyramid)
    if name.startswith("ssd"):
        yield predicted[0], outputs["cls_logits"]
        yield predicted[1], outputs["bbox_regression"]
        (boxes,) = theirs.anchor_generator(ImageList(normal, [pyramid.size]), list(maps.values()))
        yield predicted[2] / 100, boxes / 100
    else:
        yield from ((predicted[0][key], value) for key, value in outputs.items())


@pytest.mark.parametrize("name", LOADED)
def test_whole_detectors_load_and_answer_the_same(name, tmp_path, quick_init):
    torch.manual_seed(0)
    theirs = reference(name, 91).eval()
    path = tmp_path / "whole.pth"
    torch.save(theirs.state_dict(), path)
    ours = build_detector(name, 91, backbone_weights=str(path)).eval()
    side = 300 if name == "ssd300_vgg16" else 320 if name.startswith("ssd") else 96
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for mine, other in raw_answers(name, ours, theirs, images):
            assert mine.abs().max() > 0
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_only_another_number_of_classes_is_excused(tmp_path, quick_init):
    state = reference("ssdlite320_mobilenet_v3_large", 91).state_dict()
    key = "head.regression_head.module_list.2.1.weight"
    torch.save({**state, key: state[key][:8]}, tmp_path / "anchors.pth")
    with pytest.raises(CheckpointError, match=r"wrong shape: heads\.2\.regression\.1\.weight \(8, 512, 1, 1\)"):
        build_detector("ssdlite320_mobilenet_v3_large", 4, backbone_weights=str(tmp_path / "anchors.pth"))
    key = "head.classification_head.module_list.2.1.weight"
    torch.save({**state, key: state[key][:, :8]}, tmp_path / "width.pth")
    with pytest.raises(CheckpointError, match=r"wrong shape: heads\.2\.classification\.1\.weight \(546, 8, 1, 1\)"):
        build_detector("ssdlite320_mobilenet_v3_large", 4, backbone_weights=str(tmp_path / "width.pth"))


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "faster_rcnn_mobilenet_v3_large_320_fpn"])
def test_other_classes_keep_their_own_predictors(name, tmp_path, quick_init):
    state = reference(name, 91).state_dict()
    torch.save(state, tmp_path / "whole.pth")
    torch.manual_seed(0)
    detector = build_detector(name, 4, backbone_weights=str(tmp_path / "whole.pth"))
    torch.manual_seed(0)
    fresh = build_detector(name, 4).state_dict()
    ours = detector.state_dict()
    predictors = [key for key, value in ours.items() if torch.equal(value, fresh[key]) and key.endswith("weight")]
    predictors = [key for key in predictors if ours[key].ndim > 1]
    if name.startswith("ssdlite"):  # the depthwise layer in front of the predictor, and all about boxes, are loaded
        assert predictors == [f"heads.{level}.classification.1.weight" for level in range(6)]
    else:
        assert predictors == [f"roi_heads.box_predictor.{kind}.weight" for kind in ("cls_score", "bbox_pred")]


def test_ssd300_keeps_the_box_regression_for_other_classes(monkeypatch, quick_init):
    """Only the class logits depend on the classes; the keys are those of torchvision's file."""
    theirs = reference("ssd300_vgg16", 91).state_dict()
    monkeypatch.setattr("dasnet_lightning.detectors.ssd.ssd300_vgg16.load_state", lambda *_: theirs)
    detector = build_detector("ssd300_vgg16", 4, backbone_weights="COCO_V1")
    for level, head in enumerate([detector.heads[0][1], *detector.heads[1:]]):
        weight = theirs[f"head.regression_head.module_list.{level}.weight"]
        assert torch.equal(head.regression.weight, weight)
        assert head.classification.weight.shape[0] == 4 * len(detector.anchors.shapes[level])
    del theirs["backbone.scale_weight"]
    with pytest.raises(CheckpointError, match=r"COCO_V1: does not fit, .*ssd300_vgg16; missing: heads\.0\.0\.scale"):
        build_detector("ssd300_vgg16", 4, backbone_weights="COCO_V1")


def test_ssd300_takes_over_the_predictors_of_chosen_classes(monkeypatch, quick_init):
    """A detector with COCO weights detects some of its classes, in another order, without training."""
    torch.manual_seed(0)
    theirs = reference("ssd300_vgg16", 91).state_dict()
    monkeypatch.setattr("dasnet_lightning.detectors.ssd.ssd300_vgg16.load_state", lambda *_: theirs)
    chosen = [0, 62, 5]
    whole = build_detector("ssd300_vgg16", 91, backbone_weights="COCO_V1").eval()
    few = build_detector("ssd300_vgg16", 3, backbone_weights="COCO_V1", predictor_classes=chosen).eval()
    images = torch.rand(1, 3, 300, 300, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, offsets, _ = whole.predict(whole.features(images))
        fewer, same, _ = few.predict(few.features(images))
    torch.testing.assert_close(fewer, logits[..., chosen])
    torch.testing.assert_close(same, offsets)
    with pytest.raises(ConfigError, match=r"predictor_classes is \[0, 91, 5\], but the classes of COCO_V1 are 0 to 90"):
        build_detector("ssd300_vgg16", 3, backbone_weights="COCO_V1", predictor_classes=[0, 91, 5])
    with pytest.raises(ConfigError, match="predictor_classes names 3 classes, expected 4"):
        build_detector("ssd300_vgg16", 4, predictor_classes=chosen)


def test_ssd300_has_torchvisions_anchors():
    """The anchors are those of torchvision's builder: 38 to 1 cells, shapes clipped to the image."""
    with torch.device("meta"):
        generator = reference("ssd300_vgg16", 4).anchor_generator
        layout = build_detector("ssd300_vgg16", 4).anchors
    generator = DefaultBoxGenerator(generator.aspect_ratios, scales=generator.scales, steps=generator.steps)
    cells = tuple((n, n) for n in (38, 19, 10, 5, 3, 1))
    image = ImageList(torch.empty(1, 3, 300, 300), [(300, 300)])
    (theirs,) = generator(image, [torch.empty(1, 1, *cell) for cell in cells])
    ours = make_anchors(layout, (300, 300), cells, torch.device("cpu"))
    assert len(ours) == 8732
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_ssd300_has_a_raw_first_level_and_switches():
    detector = build_detector("ssd300_vgg16", 4).eval()
    with torch.no_grad():
        pyramid = detector.features(torch.rand(1, 3, 300, 300))
    assert [level.shape[-1] for level in pyramid.levels] == [38, 19, 10, 5, 3, 1]
    assert [tuple(places.shape[1:]) for places in pyramid.switches] == [
        (64, 150, 150),
        (128, 75, 75),
        (256, 38, 38),
        (512, 19, 19),
        (512, 19, 19),
    ]
    assert (pyramid.levels[0] >= 0).all()
    assert pyramid.levels[0].norm(dim=1).std() > 0.1  # raw: the L2 norm is the head's


def test_ssdlite_takes_the_full_tail_of_imagenet_weights(tmp_path, quick_init):
    state = torchvision.models.mobilenet_v3_large().state_dict()
    torch.save(state, tmp_path / "m.pth")
    detector = build_detector(
        "ssdlite320_mobilenet_v3_large", 4, backbone_weights=str(tmp_path / "m.pth"), reduced_tail=False
    )
    whole = torchvision.models.mobilenet_v3_large().eval()
    whole.load_state_dict(state)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        normal = (images - detector.mean) / detector.std
        torch.testing.assert_close(detector.eval().features(images).levels[3], whole.features(normal))
    with pytest.raises(CheckpointError, match="reduced_tail: false"):
        build_detector("ssdlite320_mobilenet_v3_large", 4, backbone_weights=str(tmp_path / "m.pth"), reduced_tail=True)
    chosen = build_detector("ssdlite320_mobilenet_v3_large", 4, weights=str(tmp_path / "m.pth"))
    assert portable_options(chosen, {"weights": "m.pth"}) == {"weights": "m.pth", "reduced_tail": False}


def test_foreign_weights_are_refused_with_the_names_that_fit(tmp_path, quick_init):
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "v2.pth")
    for name in ("ssdlite320_mobilenet_v3_large", "faster_rcnn_mobilenet_v3_large_320_fpn"):
        with pytest.raises(CheckpointError, match=r"v2\.pth: does not fit, .*mobilenet_v3_large"):
            build_detector(name, 4, backbone_weights=str(tmp_path / "v2.pth"))
    with pytest.raises(ConfigError, match=r"for mobilenet_v3_large \(IMAGENET1K_V1.*for fasterrcnn_.*\(COCO_V1"):
        build_detector("faster_rcnn_mobilenet_v3_large_320_fpn", 4, backbone_weights="COCO")


@pytest.mark.parametrize(
    ("name", "weights", "asked"),
    [
        ("ssdlite320_mobilenet_v3_large", "COCO_V1", "SSDLite320_MobileNet_V3_Large_Weights"),
        ("ssdlite320_mobilenet_v3_large", "IMAGENET1K_V2", "MobileNet_V3_Large_Weights"),
        ("faster_rcnn_mobilenet_v3_large_320_fpn", "COCO_V1", "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights"),
    ],
)
def test_a_name_means_the_detector_or_its_backbone(monkeypatch, name, weights, asked):
    class AskedError(Exception):
        pass

    def download(url, **options):
        raise AskedError(url)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    monkeypatch.setattr("dasnet_lightning.detectors.downloads.check_connection", lambda url: None)
    with torch.device("meta"), pytest.raises(AskedError) as caught:
        build_detector(name, 4, backbone_weights=weights)
    assert str(caught.value) == torchvision.models.get_weight(f"{asked}.{weights}").url


def test_keys_of_older_files_are_brought_up_to_date():
    today = [
        "rpn.head.conv.0.0.weight",
        "rpn.head.cls_logits.bias",
        "backbone.fpn.inner_blocks.0.0.weight",
        "backbone.fpn.layer_blocks.2.0.bias",
        "backbone.fpn.layer_blocks.2.1.weight",
    ]
    old = ["rpn.head.conv.weight", today[1], "backbone.fpn.inner_blocks.0.weight", *today[3:]]
    assert list(upgrade_keys({key: torch.zeros(1) for key in old})) == today
    assert list(upgrade_keys({key: torch.zeros(1) for key in today})) == today


def test_trainable_layers_of_resnet():
    with torch.device("meta"):
        detector = build_detector("retinanet_resnet50_fpn_v2", 4, trainable_layers=2)
        learning = {key.split(".")[0] for key, p in detector.backbone.body.named_parameters() if p.requires_grad}
        assert learning == {"layer3", "layer4"}
        with pytest.raises(ConfigError, match="trainable_layers is 6, expected 0 to 5"):
            build_detector("fcos_resnet50_fpn", 4, trainable_layers=6)


@pytest.mark.parametrize(
    "name", ["retinanet_resnet50_fpn_v2", "faster_rcnn_resnet50_fpn", "faster_rcnn_mobilenet_v2_fpn"]
)
@pytest.mark.parametrize("sides", [(32, 64), (0, 1, 2, 3, 4)])
def test_anchor_sides_that_do_not_fit_the_levels_are_refused(name, sides):
    with torch.device("meta"), pytest.raises(ConfigError, match=r"anchor_sides is .*, expected 5 positive numbers"):
        build_detector(name, 4, anchor_sides=sides)
