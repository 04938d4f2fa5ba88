"""Exported networks answer as `segment` does, for any number of boxes, and without torch."""

import importlib.util
import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import dasnet_lightning
from dasnet_lightning.cli.main import main
from dasnet_lightning.data.images import read_image, upright_size
from dasnet_lightning.data.resize import resize_image
from dasnet_lightning.detectors import DETECTORS
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.inference.export import runner, support
from dasnet_lightning.inference.export.write import export
from dasnet_lightning.inference.segmenter import Segmenter, load
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from saved_networks import OPTIONS, make_image, write_checkpoint

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

DOCS = Path(__file__).resolve().parents[2] / "docs" / "export.md"
IMAGES = [make_image(97, 151), make_image(128, 128, seed=1), make_image(260, 180, seed=2)]
CASES = [("instance", "zoom"), ("semantic", "zoom"), ("instance", "light"), ("semantic", "light")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that exports a small network once: its segmenter, the runner's model, and the folder."""
    made = {}

    def get(kind: str, decoder: str, target: str = "onnx"):
        if (kind, decoder, target) not in made:
            folder = tmp_path_factory.mktemp("export")
            checkpoint = write_checkpoint(folder / "model.ckpt", kind, decoder)
            export(checkpoint, folder / "out", target)
            segmenter = load(checkpoint)
            made[kind, decoder, target] = segmenter, import_runner(folder / "out").Model(folder / "out"), folder
        return made[kind, decoder, target]

    return get


def import_runner(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_runner", folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_boxes(number: int, image: np.ndarray, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    random = np.random.default_rng(seed)
    size = np.array(image.shape[1::-1])
    low = random.random((number, 2)) * size * 0.8
    boxes = np.concatenate([low, low + 3 + random.random((number, 2)) * size * 0.5], axis=1).astype(np.float32)
    return boxes, (1 + np.arange(number) % 2).tolist()


def assert_alike(expected, found, semantic: float = 0.999) -> None:
    """Box by box: within 0.1 pixel, the same labels and order, masks of IoU 0.999 or more."""
    assert found["labels"].tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found["boxes"], expected.boxes.numpy(), atol=0.1)
    np.testing.assert_allclose(found["scores"], expected.scores.numpy(), atol=2e-3)
    assert found["masks"].shape == tuple(expected.masks.shape)
    for ours, theirs in zip(expected.masks.numpy(), found["masks"], strict=True):
        assert (ours ^ theirs).sum() <= max(1, 0.001 * (ours | theirs).sum())  # a pixel may lie on the threshold
    assert (found["semantic"] == expected.semantic.numpy()).mean() >= semantic


@pytest.mark.parametrize(("kind", "decoder"), CASES)
def test_detections_are_those_of_segment(exported, kind, decoder):
    segmenter, model, _ = exported(kind, decoder)
    counts = []
    for image in IMAGES:
        expected = segmenter.segment(image)
        assert_alike(expected, model.segment(image))
        counts.append(len(expected.boxes))
    assert max(counts) >= 5  # the comparison is not one of empty lists


@pytest.mark.parametrize("number", [0, 1, 2, 50])
@pytest.mark.parametrize(("kind", "decoder"), CASES)
def test_given_boxes_of_any_number(exported, kind, decoder, number):
    segmenter, model, _ = exported(kind, decoder)
    boxes, labels = draw_boxes(number, IMAGES[2])
    expected = segmenter.segment(IMAGES[2], boxes, labels)
    assert_alike(expected, model.segment(IMAGES[2], boxes, labels))
    assert number < 50 or 0.001 < expected.masks.float().mean() < 0.5


@pytest.mark.parametrize("number", [0, 1, 2, 50])
def test_torch_export_answers_the_same(exported, number):
    segmenter, model, folder = exported("instance", "zoom", "torch-export")
    assert {path.name for path in (folder / "out").iterdir()} == {"image.pt2", "masks.pt2", "model.json", "run.py"}
    boxes, labels = draw_boxes(number, IMAGES[0])
    assert_alike(segmenter.segment(IMAGES[0], boxes, labels), model.segment(IMAGES[0], boxes, labels))
    assert_alike(segmenter.segment(IMAGES[1]), model.segment(IMAGES[1]))


def test_a_box_that_leaves_the_image_or_touches_its_border(exported):
    segmenter, model, _ = exported("instance", "zoom")
    boxes = [[-20.0, -5, 30, 40], [0, 0, 151, 97], [140.5, 90.2, 170, 120], [150.9, 0, 151, 1]]
    assert_alike(segmenter.segment(IMAGES[0], boxes, [1, 2, 1, 2]), model.segment(IMAGES[0], boxes, [1, 2, 1, 2]))


@pytest.mark.parametrize(
    "options",
    [
        InstanceOptions(score_threshold=1.0),  # an image without objects
        InstanceOptions(score_threshold=0.1, max_detections=3),
        InstanceOptions(score_threshold=0.2, clip_to_boxes=True, weight_by_instance_score=False),
        InstanceOptions(score_threshold=0.2, foreground_threshold=0.7),
    ],
)
def test_options_of_inference(exported, options, monkeypatch):
    segmenter, model, _ = exported("instance", "zoom")
    changed = Segmenter(segmenter.model, segmenter.class_names, options)
    monkeypatch.setattr(model, "options", {**vars(options), "grouping": "instance"})
    assert_alike(changed.segment(IMAGES[1]), model.segment(IMAGES[1]))


def test_grouping_by_class(exported, monkeypatch):
    segmenter, model, _ = exported("instance", "light")
    changed = Segmenter(segmenter.model, segmenter.class_names, InstanceOptions(score_threshold=0.3, grouping="class"))
    monkeypatch.setattr(model, "options", vars(changed.options))
    assert_alike(changed.segment(IMAGES[1]), model.segment(IMAGES[1]))


@pytest.mark.parametrize("options", [{"max_classes": 1}, {"box_margin": 6.0}, {"weight_by_score": False}])
@pytest.mark.parametrize("decoder", ["zoom", "light"])
def test_options_of_semantic_inference(exported, decoder, options, monkeypatch):
    segmenter, model, _ = exported("semantic", decoder)
    changed = Segmenter(segmenter.model, segmenter.class_names, SemanticOptions(score_threshold=0.2, **options))
    monkeypatch.setattr(model, "options", vars(changed.options))
    assert_alike(changed.segment(IMAGES[0]), model.segment(IMAGES[0]))


def test_the_folder_describes_the_network(exported):
    segmenter, _, folder = exported("instance", "zoom")
    about = json.loads((folder / "out" / "model.json").read_text())
    assert about["classes"] == list(segmenter.class_names)
    assert about["input"]["size"] == list(segmenter.image_size)
    assert about["input"]["mean"] == [0.5] * 3
    assert about["detection"]["nms_threshold"] == 0.45
    assert about["inference"] == vars(segmenter.options)
    assert about["masks"]["margin"] == 0.1
    assert about["versions"]["dasnet_lightning"] == dasnet_lightning.__version__
    assert str(folder) not in json.dumps(about)
    assert (folder / "out" / "run.py").read_text() == Path(runner.__file__).read_text()


def test_the_runner_needs_no_torch(exported, tmp_path):
    """A process in which torch and the library cannot be imported runs run.py on a file."""
    segmenter, _, folder = exported("instance", "zoom")
    Image.fromarray(IMAGES[1]).save(tmp_path / "picture.png")
    program = textwrap.dedent(
        """
        import runpy, sys
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torch", "torchvision", "cv2", "dasnet_lightning", "onnx"):
                    raise ImportError(f"{name} is blocked")
        sys.meta_path.insert(0, Blocked())
        script, *sys.argv[1:] = sys.argv[1:]
        runpy.run_path(script, run_name="__main__")
        assert "torch" not in sys.modules
        """
    )
    command = [sys.executable, "-c", program, folder / "out" / "run.py", tmp_path / "picture.png", "--out", tmp_path]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = segmenter.segment(tmp_path / "picture.png")
    with np.load(tmp_path / "picture.npz") as found:
        assert_alike(expected, dict(found))
    assert len(done.stdout.splitlines()) == len(expected.boxes) > 0


@pytest.mark.parametrize("size", [(320, 320), (128, 96), (31, 45)])
@pytest.mark.parametrize(
    "shape", [(375, 500), (500, 333), (64, 200), (31, 45), (640, 640), (256, 192), (960, 640), (1280, 960), (1, 7)]
)
def test_the_runner_resizes_as_segment_does(shape, size):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    difference = np.abs(runner.resize(image, size).astype(int) - resize_image(image, size))
    if shape[0] >= size[0] and shape[1] >= size[1]:
        assert not difference.any()  # averages round alike; bilinear interpolation may differ by a gray level
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["instance", "semantic"])
def test_photographs(kind, shared, tmp_path):
    """The COCO-trained SSD300 on 60 photographs of at least its input size; the decoder is not trained.

    Smaller photographs grow, and bilinear interpolation differs by a gray level. A trained decoder does not mind, but this
    one does: its probabilities are close to the threshold everywhere.
    """
    options = {"image_size": 300, "backbone_weights": str(shared / "weights" / "ssd_mobilenet_v2_coco.pth")}
    names = ("background", "cat", "dog")
    checkpoint = write_checkpoint(
        tmp_path / "model.ckpt",
        kind,
        detector="ssd300_mobilenet_v2",
        detector_options={**options, "class_names": names},
        spread=1,
    )
    inference = replace(OPTIONS[kind], score_threshold=0.1)
    segmenter = load(checkpoint, options=inference)
    export(checkpoint, tmp_path / "out", options=inference)
    model = import_runner(tmp_path / "out").Model(tmp_path / "out")
    paths = sorted((shared / "data" / "voc12_animals").rglob("*.jpg"))
    photographs = [path for path in paths[:90] if min(upright_size(path)) >= 300][:60]
    assert len(photographs) == 60
    found = 0
    for path in photographs:
        expected = segmenter.segment(path)
        assert_alike(expected, model.segment(read_image(path)))
        found += len(expected.boxes)
    assert found >= 20


def test_the_command(tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.ckpt", detector_options={"image_size": 96})
    arguments = ["export", str(checkpoint), "--out", str(tmp_path / "out"), "--inference-option", "max_detections=2"]
    assert main(arguments) == 0
    assert "image.onnx, masks.onnx, model.json, run.py" in capsys.readouterr().out
    model = import_runner(tmp_path / "out").Model(tmp_path / "out")
    assert len(model.segment(IMAGES[0])["boxes"]) == 2


def test_given_boxes_alone(tmp_path):
    options = {"backbone": "mobilenet_v2", "image_size": 96}
    checkpoint = write_checkpoint(tmp_path / "model.ckpt", detector="boxes", detector_options=options)
    model = import_runner(export(checkpoint, tmp_path / "out")).Model(tmp_path / "out")
    boxes, labels = draw_boxes(5, IMAGES[0])
    assert_alike(load(checkpoint).segment(IMAGES[0], boxes, labels), model.segment(IMAGES[0], boxes, labels))
    with pytest.raises(SystemExit, match="give boxes and labels"):
        model.segment(IMAGES[0])


def test_refusals_are_one_sentence(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(ConfigError, match=r"flip cannot be exported, set --inference-option flip=false"):
        export(checkpoint, tmp_path / "out", options=InstanceOptions(flip=True))
    with pytest.raises(ConfigError, match="--to tflite is unknown, expected one of: onnx, torch-export"):
        export(checkpoint, tmp_path / "out", "tflite")
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        export(checkpoint, checkpoint)
    soft = write_checkpoint(tmp_path / "soft.ckpt", decoder="light", soft_attention=0.5)
    with pytest.raises(ConfigError, match="soft_attention"):
        export(soft, tmp_path / "out")
    fcos = write_checkpoint(tmp_path / "fcos.ckpt", detector="fcos_resnet50_fpn", detector_options={"image_size": 96})
    with pytest.raises(ConfigError, match=r"detector 'fcos_resnet50_fpn' cannot be exported, its selection"):
        export(fcos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("dasnet_lightning.inference.export.write.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs onnx and onnxscript: install dasnet-lightning\[export\]"):
        export(write_checkpoint(tmp_path / "model.ckpt"), tmp_path / "out")


def test_the_page_has_the_table_of_support():
    assert support.support_table() in DOCS.read_text()
    own = {name for name in DETECTORS.names() if not name.startswith("toy")}
    assert own <= set(support.DETECTORS)
    for reason in {text for text in support.DETECTORS.values() if text not in (support.DETECTED, support.GIVEN)}:
        assert reason in DOCS.read_text()


SMALL = {"ssd": 160, "ssd320_vgg16": 288, "ssd300_vgg16": 300, "boxes": 96}


@pytest.mark.slow
@pytest.mark.parametrize("decoder", support.DECODERS)
@pytest.mark.parametrize("detector", [name for name, text in support.DETECTORS.items() if text == support.DETECTED])
def test_every_yes_of_the_table(detector, decoder, tmp_path):
    options = {"image_size": SMALL.get(detector, 160)}
    checkpoint = write_checkpoint(tmp_path / "model.ckpt", "instance", decoder, detector, detector_options=options)
    model = import_runner(export(checkpoint, tmp_path / "out")).Model(tmp_path / "out")
    image = make_image(400, 320)  # larger than the input: run.py averages to the same pixels
    boxes, labels = draw_boxes(3, image)
    segmenter = load(checkpoint)
    assert_alike(segmenter.segment(image, boxes, labels), model.segment(image, boxes, labels), semantic=0.99)


def test_the_segmenter_is_left_as_it_was(tmp_path):
    segmenter = load(write_checkpoint(tmp_path / "model.ckpt"))
    before = segmenter.segment(IMAGES[0])
    state = {name: value.clone() for name, value in segmenter.model.state_dict().items()}
    export(segmenter, tmp_path / "out")
    assert all(torch.equal(value, state[name]) for name, value in segmenter.model.state_dict().items())
    after = segmenter.segment(IMAGES[0])
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.masks, after.masks)
