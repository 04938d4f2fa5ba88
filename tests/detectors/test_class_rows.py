"""COCO's predictor rows go to the classes of the same name, on files of the layout that torchvision publishes."""

import importlib.util

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.class_rows import coco_names, describe_rows, match_coco
from dasnet_lightning.detectors.pretrained import PUBLISHED
from dasnet_lightning.detectors.ssd.ssd300_mobilenet_v2 import OFFSET_ORDER
from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.functional.boxes import scale_boxes

CLASSES = ("background", "disc", "Dog", "tvmonitor", "square", "Dining_Table")
ROWS = {0: 0, 2: 18, 3: 72, 5: 67}  # ours -> COCO's category id
FRESH = [1, 4]
NOTE = "takes over COCO's rows of Dog, tvmonitor (tv), Dining_Table; fresh: disc, square"
SSD_LEVELS = range(6)
PREDICTORS = {  # our layer -> torchvision's, and the channels of a class at an anchor
    "ssd300_vgg16": {
        f"heads.{level}.{'1.' if level == 0 else ''}classification": (
            f"head.classification_head.module_list.{level}",
            1,
        )
        for level in SSD_LEVELS
    },
    "ssdlite320_mobilenet_v3_large": {
        f"heads.{level}.classification.1": (f"head.classification_head.module_list.{level}.1", 1)
        for level in SSD_LEVELS
    },
    **{
        name: {"model.head.classification_head.cls_logits": ("head.classification_head.cls_logits", 1)}
        for name in ("retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn")
    },
    **{
        name: {f"roi_heads.box_predictor.{layer}": (f"roi_heads.box_predictor.{layer}", width)}
        | {"roi_heads.box_predictor.cls_score": ("roi_heads.box_predictor.cls_score", 1)}
        for name in (
            "faster_rcnn_resnet50_fpn",
            "faster_rcnn_resnet50_fpn_v2",
            "faster_rcnn_mobilenet_v3_large_320_fpn",
        )
        for layer, width in [("bbox_pred", 4)]
    },
}


def coco_state(name):
    """Return a random state dict with the keys and shapes of torchvision's COCO weights."""
    with torch.device("meta"):
        model = torchvision.models.get_model(
            name.replace("faster_rcnn", "fasterrcnn"), weights=None, weights_backbone=None, num_classes=91
        )
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(value.shape, generator=generator)
        if value.is_floating_point()
        else torch.zeros_like(value, device="cpu")
        for key, value in model.state_dict().items()
    }


def by_class(tensor, classes, width):
    """Return the rows of a predictor as (anchors, classes, ...)."""
    return tensor.unflatten(0, (-1, classes, width))


def test_every_published_coco_detector_is_tested():
    assert set(PREDICTORS) == {name for name, published in PUBLISHED.items() if published.coco}


@pytest.mark.parametrize("name", PREDICTORS)
def test_rows_are_taken_over_by_name(name, tmp_path, quick_init):
    theirs = coco_state(name)
    torch.save(theirs, tmp_path / "coco.pth")
    torch.manual_seed(0)
    fresh = build_detector(name, len(CLASSES)).state_dict()
    torch.manual_seed(0)
    detector = build_detector(name, len(CLASSES), weights=str(tmp_path / "coco.pth"), class_names=CLASSES)
    ours = detector.state_dict()
    for layer, (their_layer, width) in PREDICTORS[name].items():
        for parameter in ("weight", "bias"):
            rows = by_class(ours[f"{layer}.{parameter}"], len(CLASSES), width)
            loaded = by_class(theirs[f"{their_layer}.{parameter}"], 91, width)
            untrained = by_class(fresh[f"{layer}.{parameter}"], len(CLASSES), width)
            assert torch.equal(rows[:, list(ROWS)], loaded[:, list(ROWS.values())])
            assert torch.equal(rows[:, FRESH], untrained[:, FRESH])
    assert detector.weights_note == f"detector '{name}' starts from {tmp_path / 'coco.pth'} and {NOTE}"


def test_without_names_another_number_of_classes_starts_fresh(tmp_path, quick_init):
    torch.save(coco_state("ssdlite320_mobilenet_v3_large"), tmp_path / "coco.pth")
    detector = build_detector("ssdlite320_mobilenet_v3_large", 4, weights=str(tmp_path / "coco.pth"))
    assert detector.weights_note.endswith("its class predictors are for 90 classes and start fresh")
    with pytest.raises(ConfigError, match="class_names has 6 names, expected 4"):
        build_detector("ssdlite320_mobilenet_v3_large", 4, weights=str(tmp_path / "coco.pth"), class_names=CLASSES)


@pytest.mark.parametrize(
    ("name", "coco"),
    [
        ("aeroplane", "airplane"),
        ("diningtable", "dining table"),
        ("Motorbike", "motorcycle"),
        ("potted-plant", "potted plant"),
        ("sofa", "couch"),
        ("tvmonitor", "tv"),
        ("PERSON", "person"),
        ("traffic_light", "traffic light"),
        ("mobile phone", "cell phone"),
    ],
)
def test_names_and_synonyms(name, coco):
    (_, row) = match_coco(("background", name))
    assert coco_names()[row] == coco


def test_unknown_names_have_no_row():
    names = ("background", "N/A", "na", "background", "dogs")
    assert match_coco(names) == (0, None, None, None, None)
    assert describe_rows(names[:2], (0, None)) == "takes over none of COCO's class rows; fresh: N/A"


def ssd300_coco_state(state):
    """Return a state dict of ssd300_mobilenet_v2 with the keys of the published file."""
    parts = {"backbone.features": "trunk", "backbone.extras": "extras"}
    renamed = {}
    for key, value in state.items():
        head, _, rest = key.partition(".classification.")
        if rest:
            renamed[f"class_heads.{head[6:]}.{rest}"] = value
        elif ".regression." in key:
            head, _, rest = key.partition(".regression.")
            renamed[f"box_heads.{head[6:]}.{rest}"] = value.unflatten(0, (-1, 4))[:, OFFSET_ORDER].flatten(0, 1)
        else:
            part = next(part for part in parts if key.startswith(part))
            renamed[key.replace(part, parts[part], 1)] = value
    return renamed


class TestSSD300MobileNetV2:
    def test_rows_are_taken_over_by_name(self, tmp_path):
        source = build_detector("ssd300_mobilenet_v2", 91).state_dict()
        path = tmp_path / "coco.pth"
        torch.save(ssd300_coco_state(source), path)
        torch.manual_seed(0)
        fresh = build_detector("ssd300_mobilenet_v2", len(CLASSES)).state_dict()
        torch.manual_seed(0)
        detector = build_detector("ssd300_mobilenet_v2", len(CLASSES), weights=str(path), class_names=CLASSES)
        for key, value in detector.state_dict().items():
            if ".classification." in key:
                rows, loaded, untrained = (
                    by_class(item, classes, 1)
                    for item, classes in ((value, len(CLASSES)), (source[key], 91), (fresh[key], len(CLASSES)))
                )
                assert torch.equal(rows[:, list(ROWS)], loaded[:, list(ROWS.values())])
                assert torch.equal(rows[:, FRESH], untrained[:, FRESH])
            else:
                assert torch.equal(value, source[key])
        assert NOTE in detector.weights_note

    def test_pixels_are_those_of_the_weights_and_survive_a_rebuild(self, tmp_path):
        torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "m.pth")
        detector = build_detector("ssd300_mobilenet_v2", 4, weights=str(tmp_path / "m.pth"))
        assert detector.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
        again = build_detector("ssd300_mobilenet_v2", 4, **detector.portable_options)
        assert torch.equal(again.mean, detector.mean)
        assert torch.equal(again.std, detector.std)
        assert build_detector("ssd300_mobilenet_v2", 4).mean.flatten().tolist() == [0.5] * 3

    def test_foreign_weights_are_refused(self, tmp_path):
        torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "s.pth")
        with pytest.raises(CheckpointError, match=r"s\.pth: does not fit, .*mobilenet_v2 or of TensorFlow's"):
            build_detector("ssd300_mobilenet_v2", 4, weights=str(tmp_path / "s.pth"))

    def test_it_answers_like_the_reference(self, shared):
        """Logits, offsets, anchors and detections are those of the module that was checked against the original graph."""
        path = shared / "weights" / "ssd_mobilenet_v2_coco.pth"
        spec = importlib.util.spec_from_file_location("ssd_coco_reference", path.with_name("ssd_coco_reference.py"))
        reference = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(reference)
        theirs = reference.load(str(path))
        ours = build_detector("ssd300_mobilenet_v2", 91, weights=str(path), top_k=1917).eval()
        file = sorted((shared / "data" / "voc12_animals").rglob("JPEGImages/*.jpg"))[0]
        pixels = np.array(Image.open(file).convert("RGB"))
        photo = torch.from_numpy(pixels).permute(2, 0, 1)
        resized = torch.nn.functional.interpolate(photo[None].float(), (300, 300), mode="bilinear", align_corners=False)
        with torch.no_grad():
            pyramid = ours.features(resized / 255)
            logits, offsets, anchors = ours.predict(pyramid)
            their_logits, their_offsets = theirs(resized / 127.5 - 1)
        torch.testing.assert_close(logits, their_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(offsets, their_offsets[..., OFFSET_ORDER], rtol=1e-4, atol=1e-4)
        y, x, height, width = (reference.make_anchors() * 300).unbind(dim=1)
        corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=1)
        torch.testing.assert_close(anchors, corners, rtol=0, atol=1e-3)
        boxes, scores, labels = theirs.detect(pixels)
        (detections,) = ours.detect(pyramid)
        assert labels[0] == detections.labels[0]
        assert scores[0] > 0.3
        assert torch.equal(detections.labels, labels)
        torch.testing.assert_close(detections.scores, scores, rtol=1e-4, atol=1e-4)
        scaled = scale_boxes(detections.boxes, (300, 300), (photo.shape[1], photo.shape[2]))
        torch.testing.assert_close(scaled, boxes, rtol=1e-3, atol=0.05)
