"""transformers' models as detectors, compared with the original models; test_conformance.py tests the contract."""

import shutil
import sys
from dataclasses import replace

import lightning as L
import pytest
import torch
from tiny_transformers import TINY
from torch.utils.data import DataLoader

from dasnet_lightning.callbacks import AtomicCheckpointIO
from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.huggingface_builders import RAW_PIXELS
from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.inference.segmenter import load
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.tasks.config import NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.semantic import SemanticTask
from toy import make_batch, make_target

SIZE = (64, 96)
BOXES = [[8.0, 8, 40, 56], [30, 20, 90, 60]]
KINDS = ("detr", "deformable_detr", "rt_detr_v2", "d_fine")


@pytest.fixture(autouse=True)
def transformers(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def build(kind, num_classes=4, **options):
    torch.manual_seed(0)
    return build_detector("transformers", num_classes, model=TINY[kind], image_size=SIZE, **options)


def whole_model(transformers, kind, num_labels=3):
    """Load the same weights into the model as transformers builds it."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**TINY[kind])
    config.num_labels = num_labels
    return transformers.AutoModelForObjectDetection.from_config(config)


def targets(ignore=(False, False)):
    made = make_target(BOXES, [1, 3], size=SIZE)
    return [replace(made, ignore=torch.tensor(ignore)), make_target([], [], size=SIZE)]


def transformers_labels(kept):
    height, width = SIZE
    rows = [[(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
            for x0, y0, x1, y1 in (BOXES[index] for index in kept)]  # fmt: skip
    first = {"class_labels": torch.tensor([[0, 2][index] for index in kept]), "boxes": torch.tensor(rows)}
    return [first, {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}]


def normalized(kind, images):
    if kind in RAW_PIXELS:
        return images
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
class TestAgainstTheWholeModel:
    @pytest.mark.parametrize("kept", [(0, 1), (1,)])  # what is ignored is not there
    def test_losses(self, kind, kept, images, transformers):
        detector, model = build(kind).eval(), whole_model(transformers, kind).eval()
        with torch.no_grad():
            ignore = tuple(index not in kept for index in (0, 1))
            ours = detector.losses(detector.features(images), targets(ignore))
            theirs = model(pixel_values=normalized(kind, images), labels=transformers_labels(kept)).loss
        assert float(ours["detection"]) == pytest.approx(float(theirs), rel=1e-5)

    def test_detections(self, kind, images, transformers):
        detector, model = build(kind, score_threshold=0.0).eval(), whole_model(transformers, kind).eval()
        with torch.no_grad():
            found = detector.detect(detector.features(images))
            answer = model(pixel_values=normalized(kind, images))
        for item, logits, boxes in zip(found, answer.logits, answer.pred_boxes, strict=True):
            scores = logits.softmax(dim=1)[:, :-1] if kind == "detr" else logits.sigmoid()
            assert scores.shape == (20, 3)
            assert float(item.scores[0]) == pytest.approx(float(scores.max()), rel=1e-5)
            query, label = divmod(int(scores.argmax()), 3)
            center_x, center_y, width, height = boxes[query].tolist()
            box = [center_x - width / 2, center_y - height / 2, center_x + width / 2, center_y + height / 2]
            expected = [max(0.0, min(side, value * side)) for value, side in zip(box, (96, 64) * 2, strict=True)]
            assert item.boxes[0].tolist() == pytest.approx(expected, abs=1e-3)
            assert int(item.labels[0]) == label + 1


def test_the_pyramid_begins_at_stride_4_though_the_model_reads_less():
    for kind, read in (("detr", (3,)), ("rt_detr_v2", (1, 2, 3)), ("d_fine", (1, 2, 3))):
        detector = build(kind)
        assert detector.strides == (4, 8, 16, 32)
        assert detector.out_channels == (8, 12, 16, 24)
        assert detector.read == read


def test_a_backbone_of_timm_returns_what_it_returns(images):
    pytest.importorskip("timm")
    backbone = {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [2, 3, 4]}
    detector = build_detector("transformers", 4, model={**TINY["detr"], "backbone_config": backbone}, image_size=SIZE)
    assert detector.strides == (8, 16, 32)
    assert detector.read == (0, 1, 2)
    with torch.no_grad():
        assert float(detector.losses(detector.features(images), targets())["detection"]) > 0


def test_what_was_detected_in_inference_mode_does_not_stop_training(images):
    """Lightning validates in inference mode, in which transformers caches its anchors."""
    detector = build("rt_detr_v2").train()
    with torch.inference_mode():
        detector.detect(detector.features(images))
    detector.losses(detector.features(images), targets())["detection"].backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a pretrained model for five labels as transformers does."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("pretrained") / "model"
    whole_model(transformers, "rt_detr_v2", num_labels=5).save_pretrained(path)
    return path


def test_a_pretrained_model_comes_from_its_folder(folder, images, transformers):
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    detector = build_detector("transformers", 6, model=str(folder), image_size=SIZE, score_threshold=0.0).eval()
    with torch.no_grad():
        best = detector.detect(detector.features(images))[0].scores[0]
        assert float(best) == pytest.approx(float(model(pixel_values=images[:1]).logits.sigmoid().max()), rel=1e-5)


def test_other_classes_start_untrained_and_the_rest_is_kept(folder, transformers):
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    detector = build_detector("transformers", 4, model=str(folder), image_size=SIZE)
    theirs, ours = dict(model.named_parameters()), dict(detector.model.named_parameters())
    other = {name for name in ours if ours[name].shape != theirs[name].shape}
    assert all("class_embed" in name or "score_head" in name for name in other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in other)


def test_a_checkpoint_needs_no_folder(folder, images, tmp_path):
    """Run both stages, delete the folder of the pretrained model, then run inference."""
    gone = tmp_path / "model"
    shutil.copytree(folder, gone)
    options = {"model": str(gone), "image_size": list(SIZE)}
    batches = DataLoader([make_batch(targets(), size=SIZE)], batch_size=None)

    def fit(task, name):
        trainer = L.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                            enable_model_summary=False, accelerator="cpu", plugins=[AtomicCheckpointIO()])  # fmt: skip
        trainer.fit(task, batches, batches)
        trainer.save_checkpoint(tmp_path / name)

    names = ("background", "a", "b", "c")
    fit(DetectionTask(4, names, detector="transformers", detector_options=options), "detector.ckpt")
    shutil.rmtree(gone)
    saved = read_checkpoint(tmp_path / "detector.ckpt")["hyper_parameters"]["detector_options"]
    assert saved["model"]["model_type"] == "rt_detr_v2"
    assert str(gone) not in repr(saved)
    stage_one = str(tmp_path / "detector.ckpt")
    fit(
        SemanticTask(
            4, names, network=NetworkConfig("transformers", saved), recipe=RecipeConfig(detector_checkpoint=stage_one)
        ),
        "model.ckpt",
    )
    segmenter = load(tmp_path / "model.ckpt")
    assert segmenter.image_size == SIZE
    image = (images[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    assert len(segmenter.segment(image, boxes=[BOXES[0]], labels=[1])) == 1


def test_weights_of_the_backbone_alone(tmp_path):
    state = {key: value + 1 for key, value in build("d_fine").backbone.state_dict().items()}
    torch.save(state, tmp_path / "backbone.pth")
    detector = build("d_fine", backbone_weights=str(tmp_path / "backbone.pth"))
    assert all(torch.equal(value, state[key]) for key, value in detector.backbone.state_dict().items())
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match="expected the state dict of a HGNetV2Backbone"):
        build("d_fine", backbone_weights=str(tmp_path / "foreign.pth"))


class TestErrors:
    def test_a_model_must_be_named(self):
        with pytest.raises(ConfigError, match="needs the option model"):
            build_detector("transformers", 4)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ({"model_type": "nonsense"}, "model from nonsense: Unrecognized model identifier"),
            ({"model_type": "bert"}, "model from bert: Unrecognized configuration class"),
            ({"d_model": 16}, "model from a configuration without model_type"),
            ({"model_type": "yolos", "num_hidden_layers": 1}, "YolosForObjectDetection has no backbone of its own"),
        ],
    )
    def test_what_is_no_detection_model_is_named(self, model, message):
        with pytest.raises(ConfigError, match=message):
            build_detector("transformers", 4, model=model)

    def test_an_empty_folder_is_named(self, tmp_path):
        with pytest.raises((CheckpointError, ConfigError), match=str(tmp_path)):
            build_detector("transformers", 4, model=str(tmp_path))

    def test_a_missing_library_names_its_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ConfigError, match=r"pip install 'dasnet-lightning\[transformers\]'"):
            build("detr")
