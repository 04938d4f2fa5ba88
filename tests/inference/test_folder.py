"""Models as folders: bit-equal answers, the model card, the hub, and refusals of what is not ours."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dasnet_lightning
from dasnet_lightning.cli.main import main
from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.inference.folder import ModelCard
from dasnet_lightning.inference.segmenter import Segmenter, load
from saved_networks import make_image, write_checkpoint

IMAGE = make_image(97, 151)
CASES = [("instance", "zoom"), ("semantic", "zoom"), ("instance", "light"), ("semantic", "paper")]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved model; its checkpoint does not exist any more."""
    checkpoint = write_checkpoint(tmp_path / "model.ckpt")
    saved = load(checkpoint).save(tmp_path / "saved")
    checkpoint.unlink()
    return saved


def assert_bit_equal(first: Segmenter, second: Segmenter) -> None:
    ours, theirs = first.segment(IMAGE), second.segment(IMAGE)
    assert len(ours.boxes)
    for name in ("boxes", "labels", "scores", "masks", "semantic"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def change(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize(("kind", "decoder"), CASES)
def test_a_loaded_folder_gives_the_same_bits(kind, decoder, fold, tmp_path):
    original = load(write_checkpoint(tmp_path / "model.ckpt", kind, decoder), fold=fold)
    original.category_ids, original.image_range = (0, 17, "x"), None
    loaded = load(original.save(tmp_path / "saved"), fold=fold)
    assert_bit_equal(original, loaded)
    assert loaded.options == original.options
    assert loaded.class_names == original.class_names
    assert loaded.category_ids == (0, 17, "x")
    assert_bit_equal(loaded, load(loaded.save(tmp_path / "again"), fold=fold))
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_present_options_are_saved(tmp_path):
    segmenter = load(write_checkpoint(tmp_path / "model.ckpt"))
    segmenter.options = type(segmenter.options)(score_threshold=0.77, max_detections=3)
    assert load(segmenter.save(tmp_path / "saved")).options == segmenter.options


def test_an_unfolded_folder_may_be_folded_but_not_the_reverse(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model.ckpt")
    load(checkpoint, fold=False).save(tmp_path / "unfolded")
    assert_bit_equal(load(checkpoint), load(tmp_path / "unfolded"))
    load(checkpoint).save(tmp_path / "folded")
    with pytest.raises(ConfigError, match="its layers are folded, save it again"):
        load(tmp_path / "folded", fold=False)


def test_the_folder_has_no_path_of_the_machine(folder, tmp_path):
    for file in ("config.json", "README.md"):
        assert str(tmp_path) not in (folder / file).read_text()
    assert "recipe" not in json.loads((folder / "config.json").read_text())["hyper_parameters"]


def test_the_card_comes_from_the_run_folder(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "run" / "masks-5-per-class" / "final.ckpt")
    budget = {
        "budget": "5/class",
        "mask_images": 1234,
        "mask_objects": 5678,
        "checkpoint": "elsewhere/masks-5-per-class/final.ckpt",
        "metrics": {"val/miou": 0.71234, "val/iou/a": 0.5, "val/seconds": 99.0, "val/nan": float("nan")},
    }
    results = {"config": {"data": str(tmp_path / "photos")}, "budgets": [{**budget, "checkpoint": "x/y.ckpt"}, budget]}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    load(load(checkpoint).save(tmp_path / "first")).save(tmp_path / "second")
    for saved in (tmp_path / "first", tmp_path / "second"):
        card = (saved / "README.md").read_text()
        assert "* Training data: photos\n* Masks: 5/class (5,678 masks in 1,234 images)\n* Classes (2): a, b\n" in card
        assert "| val/miou | 0.7123 |" in card
        assert "license: unknown" in card
        assert not any(word in card for word in ("iou/a", "seconds", "nan", str(tmp_path)))


def test_the_card_of_the_user(tmp_path):
    card = ModelCard("cats", "all", {"mask AP": 0.25}, "cc-by-4.0", "For demonstration.")
    text = (load(write_checkpoint(tmp_path / "model.ckpt")).save(tmp_path / "saved", card) / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: dasnet_lightning\nlicense: cc-by-4.0\n")
    assert all(part in text for part in ("cats", "| mask AP | 0.2500 |", "For demonstration.", "weights: cc-by-4.0"))


def test_the_command_writes_and_reads_folders(tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.ckpt")
    assert main(["export", str(checkpoint), "--to", "folder", "--out", str(tmp_path / "saved")]) == 0
    assert "README.md, config.json, model.safetensors" in capsys.readouterr().out
    assert_bit_equal(load(checkpoint), load(tmp_path / "saved"))
    from PIL import Image

    Image.fromarray(IMAGE).save(tmp_path / "picture.png")
    arguments = ["segment", str(tmp_path / "picture.png"), "--checkpoint", str(tmp_path / "saved")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]


@pytest.mark.parametrize("source", ["hf://owner/name", "hf://owner/name@v1.0", Path("hf://owner/name")])
def test_the_hub(source, folder, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, files=set(allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert_bit_equal(load(folder), dasnet_lightning.load(source))
    revision = "v1.0" if "@" in str(source) else None
    files = {"config.json", "model.safetensors", "README.md"}
    assert asked == {"repository": "owner/name", "revision": revision, "files": files}


def test_the_hub_fails_in_one_sentence(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(*args, **options):
        raise OSError("no route\nto the host")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=r"^hf://a/b: cannot be downloaded \(OSError: no route\)$"):
        load("hf://a/b")
    with pytest.raises(ConfigError, match=r"^hf://a: expected hf://owner/name or"):
        load("hf://a")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"install dasnet-lightning\[hub\]"):
        load("hf://a/b")


def test_other_folders_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: not a model folder of dasnet_lightning, it has no config.json"):
        load(tmp_path / "empty")
    change(folder, library_name="transformers")
    with pytest.raises(CheckpointError, match=r"its config.json is of another program"):
        load(folder)
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match=r"its config.json is of another program"):
        load(folder)
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=r"its config.json is of another program"):
        load(folder)
    (folder / "config.json").write_bytes(b'{"library_name": \xff')
    with pytest.raises(CheckpointError, match="damaged, it cannot be read as JSON"):
        load(folder)


def test_other_versions_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    change(tmp_path / "copy", folder_format=2)
    with pytest.raises(CheckpointError, match="has folder format 2, this version reads 1: update the library"):
        load(tmp_path / "copy")
    info = json.loads((folder / "config.json").read_text())["dasnet_lightning"]
    change(folder, dasnet_lightning={**info, "format": 99, "version": "9.0"})
    with pytest.raises(CheckpointError, match=r"written by dasnet_lightning 9.0 in format 99"):
        load(folder)


@pytest.mark.parametrize("entry", ["hyper_parameters", "dasnet_lightning"])
def test_a_config_without_its_entries_is_refused(folder, entry):
    change(folder, **{entry: None})
    with pytest.raises(CheckpointError, match="does not describe a network"):
        load(folder)


def test_damaged_weights_are_refused(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or of another model, its checksum"):
        load(folder)
    path.write_bytes(content[:100])
    change(folder, sha256=hashlib.sha256(content[:100]).hexdigest())
    with pytest.raises(CheckpointError, match=r"model.safetensors: truncated or damaged"):
        load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file of weights"):
        load(folder)


def test_weights_of_another_network_are_refused(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.startswith("decoder."))
    save_file({key: value for key, value in state.items() if key != name}, path)
    change(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(
        CheckpointError, match="does not fit: it holds detector 'ssd_tiny' for 3 classes; 1 entries missing"
    ):
        load(folder)


def test_what_cannot_be_saved(tmp_path):
    segmenter = load(write_checkpoint(tmp_path / "model.ckpt"))
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        segmenter.save(tmp_path / "model.ckpt")
    with pytest.raises(ConfigError, match=r"only a segmenter that dasnet_lightning.load has made can be saved"):
        Segmenter(segmenter.model, segmenter.class_names, segmenter.options).save(tmp_path / "saved")
