"""`dasnet segment` with a made-up network: what is found, written and reported."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from dasnet_lightning.cli.image_files import find_images, name_pictures
from dasnet_lightning.cli.main import main
from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.sources.open import open_dataset
from dasnet_lightning.errors import DataError
from dasnet_lightning.inference import segmenter as inference
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.inference.stream import SegmentationStream
from dasnet_lightning.models.instance import InstanceOptions


class Squares:
    """Answers every readable image with one square, of the category 18; its checkpoint holds options of its own."""

    feature_cache = None
    image_range = None

    def __init__(self) -> None:
        self.options = InstanceOptions(score_threshold=0.17, max_detections=9)

    def segment_many(self, paths: Sequence[Path], batch_size: int, workers: int) -> SegmentationStream:
        return SegmentationStream(self.outcomes(paths))

    def outcomes(self, paths: Sequence[Path]) -> Iterator[Segmentation | BaseException]:
        for path in paths:
            try:
                outcome: Segmentation | BaseException = self.segment(path)
            except DataError as error:
                outcome = error
            yield outcome

    def segment(self, path: Path) -> Segmentation:
        image = read_image(path)
        masks = torch.zeros(1, *image.shape[:2], dtype=torch.bool)
        masks[0, 4:12, 6:16] = True
        return Segmentation(
            image=image,
            boxes=torch.tensor([[6.0, 4.0, 16.0, 12.0]]),
            labels=torch.tensor([2]),
            scores=torch.tensor([0.5]),
            masks=masks,
            semantic=masks[0].long() * 2,
            class_names=("background", "cat", "dog"),
            category_ids=(0, 17, 18),
        )


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Put the made-up network in the place of checkpoints; collects how they were asked for, and what was made of them."""
    calls: list[dict] = []

    def load(checkpoint: Path, device: str, **cache: Any) -> Squares:
        calls.append({"checkpoint": checkpoint, "device": device, "network": Squares(), **cache})
        return calls[-1]["network"]

    monkeypatch.setattr(inference, "load", load)
    return calls


def write_image(path: Path, size: tuple[int, int] = (24, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 120, dtype=np.uint8)).save(path)
    return path


def test_a_folder_becomes_pictures_and_a_coco_file(
    tmp_path: Path, loads: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "in" / "a.jpg")
    write_image(tmp_path / "in" / "sub" / "A.PNG", (40, 30))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    out = tmp_path / "in" / "out"
    arguments = ["segment", str(tmp_path / "in"), "--checkpoint", "c.ckpt", "--out", str(out), "--device", "cpu"]
    assert main(arguments) == 0
    assert [path.name for path in out.iterdir()] == ["predictions.json"]  # pictures only if asked for
    loads.clear()
    capsys.readouterr()
    for _ in range(2):  # the second time the pictures of the first lie inside the folder
        assert main([*arguments, "--draw"]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["A_2.png", "a.png", "predictions.json"]
    assert (loads[0]["checkpoint"], loads[0]["device"]) == (Path("c.ckpt"), "cpu")
    assert (loads[0]["feature_cache"], loads[0]["feature_cache_gb"]) == (None, 10.0)
    assert "2 of 2 images segmented, 2 objects" in capsys.readouterr().out
    predictions = COCO(out / "predictions.json")
    assert [(image["width"], image["height"]) for image in predictions.dataset["images"]] == [(24, 20), (40, 30)]
    assert predictions.dataset["categories"] == [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    for image_id in (1, 2):
        (annotation,) = predictions.loadAnns(predictions.getAnnIds(imgIds=[image_id]))
        assert annotation["bbox"] == [6.0, 4.0, 10.0, 8.0]
        assert annotation["category_id"] == 18
        assert annotation["area"] == 80 == predictions.annToMask(annotation).sum()
    results = json.loads((out / "predictions.json").read_text())["annotations"]
    assert len(predictions.loadRes(results).anns) == 2


def test_a_broken_image_is_reported_and_the_rest_is_done(
    tmp_path: Path, loads: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_image(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"")
    arguments = [str(tmp_path / "bad.jpg"), str(good), "--checkpoint", "c", "--out", str(tmp_path / "out")]
    assert main(["segment", *arguments, "--draw"]) == 2
    captured = capsys.readouterr()
    assert "bad.jpg" in captured.err
    assert "1 of 2 images could not be segmented" in captured.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.png", "predictions.json"]
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 1


def test_what_was_done_before_an_interruption_is_kept(
    tmp_path: Path, loads: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stops(Squares):
        def segment(self, path: Path) -> Segmentation:
            if path.stem == "b":
                raise KeyboardInterrupt
            return super().segment(path)

    monkeypatch.setattr(inference, "load", lambda *given, **options: Stops())
    for name in "ab":
        write_image(tmp_path / f"{name}.png")
    assert main(["segment", str(tmp_path), "--checkpoint", "c", "--out", str(tmp_path / "out")]) == 130
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 1


def test_the_checkpoints_options_are_kept_but_for_those_that_are_given(
    tmp_path: Path, loads: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_image(tmp_path / "a.png")
    arguments = ["segment", str(image), "--checkpoint", "c", "--out", str(tmp_path / "out")]
    saved = Squares().options
    assert main(arguments) == 0
    assert loads[0]["network"].options == saved
    assert main([*arguments, "--score-threshold", "0.25"]) == 0
    assert loads[1]["network"].options == replace(saved, score_threshold=0.25)
    several = ["--inference-option", "foreground_threshold=0.4", "--inference-option=grouping=class"]
    assert main([*arguments, *several, "--score-threshold", "0"]) == 0
    expected = replace(saved, score_threshold=0.0, foreground_threshold=0.4, grouping="class")
    assert loads[2]["network"].options == expected
    capsys.readouterr()

    assert main([*arguments, "--score-threshold", "25"]) == 2
    assert main([*arguments, "--inference-option", "grouping"]) == 2
    assert len(loads) == 3
    capsys.readouterr()
    assert main([*arguments, "--inference-option", "groping=class"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dasnet: --inference-option: 'groping' is unknown, did you mean 'grouping'?")


@pytest.mark.parametrize("device", ["warp", "cuda:77"])
def test_a_device_that_does_not_exist_is_refused(
    tmp_path: Path, loads: list[dict], device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_image(tmp_path / "a.png")
    assert main(["segment", str(image), "--checkpoint", "c", "--device", device, "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dasnet: --device {device}: cannot be used")
    assert len(error.splitlines()) == 1
    assert loads == []


def test_files_folders_and_patterns_are_found_once(tmp_path: Path) -> None:
    first, second = write_image(tmp_path / "x" / "1.png"), write_image(tmp_path / "x" / "y [z]" / "2.jpeg")
    assert find_images([str(second), str(tmp_path / "x")], tmp_path / "out") == ([second, first], {})
    assert find_images([str(tmp_path / "x" / "*.png"), str(first)], tmp_path / "out") == ([first], {})
    assert find_images([str(tmp_path / "**" / "*.jpeg")], tmp_path / "out") == ([second], {})
    assert find_images([str(tmp_path / "x")], tmp_path) == ([first, second], {})


def test_skipped_files_are_counted_by_kind(
    tmp_path: Path, loads: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    first = write_image(folder / "a.jpg")
    for name in ("a.gif", "b.GIF", "x.jfif", "x.avif", "x.heic", "._a.jpg", "sub/notes", "out/drawn.gif"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    images, skipped = find_images([str(folder), str(folder / "a.gif")], folder / "out")
    assert images == [first, folder / "a.gif"]  # what is named is tried
    assert skipped == {
        ".gif": 1,
        ".jfif": 1,
        ".avif": 1,
        ".heic": 1,
        "._* (macOS resource forks)": 1,
        "without a suffix": 1,
    }
    assert main(["segment", str(folder), "--checkpoint", "c", "--out", str(folder / "out"), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert (
        "skipped 7 files: 1 ._* (macOS resource forks), 1 .avif, 2 .gif, 1 .heic, 1 .jfif, 1 without a suffix"
        in captured.err
    )
    assert "1 of 1 images segmented" in captured.out
    with pytest.raises(DataError, match=r"no image found, 1 \.gif; expected"):
        find_images([str(folder / "a*.gif")], tmp_path / "out")
    assert find_images([str(folder), str(folder / "*.jpg")], folder / "out")[0] == [first]


@pytest.mark.parametrize("option", ["--out", "--voc-results"])
def test_results_on_a_file_are_refused_before_anything_is_loaded(
    tmp_path: Path, loads: list[dict], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_image(tmp_path / "a.jpg")
    (tmp_path / "file").touch()
    for place, words in (("file", "is a file, expected a folder"), ("file/x", "cannot be made (Not a directory)")):
        arguments = ["segment", str(image), "--checkpoint", "c", "--out", str(tmp_path / "out"), "--device", "cpu"]
        assert main([*arguments, option, str(tmp_path / place)]) == 2
        error = capsys.readouterr().err
        assert error == f"dasnet: {option} {tmp_path / place}: {words}\n"
    assert loads == []


@pytest.fixture
def predictions(tmp_path: Path, loads: list[dict], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Predictions of images in another folder, made from a third one."""
    for name in ("a.png", "sub/a.png", "sub/b.jpg"):
        write_image(tmp_path / "photos" / name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    arguments = ["../photos/a.png", "../photos", "--checkpoint", "c", "--out", "../results/one", "--device", "cpu"]
    assert main(["segment", *arguments]) == 0
    monkeypatch.chdir("/")
    return tmp_path / "results" / "one" / "predictions.json"


def test_predictions_are_read_back_as_a_data_set(predictions: Path, tmp_path: Path) -> None:
    content = json.loads(predictions.read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "sub/a.png", "sub/b.jpg"]
    assert content["info"]["image_folder"] == "../../photos"
    coco = COCO(predictions)
    assert all((tmp_path / "photos" / image["file_name"]).is_file() for image in coco.dataset["images"])
    data = open_dataset(predictions)
    records = [*data.train.records, *data.val.records]
    assert sorted(record.path for record in records) == sorted(
        predictions.parent / "../../photos" / image["file_name"] for image in content["images"]
    )
    record = data.train.records[0]
    assert data.train.load_masks(record, [0]).masks.sum() == 80
    with pytest.raises(DataError, match="name the file, not its folder"):
        open_dataset(predictions.parent)
    moved = tmp_path / "photos" / "instances.json"
    moved.write_bytes(predictions.read_bytes())
    assert len(open_dataset(tmp_path / "photos").train.records) == 2


def test_predictions_are_read_by_supervision(predictions: Path, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    dataset = supervision.DetectionDataset.from_coco(
        images_directory_path=str(tmp_path / "photos"), annotations_path=str(predictions)
    )
    assert dataset.classes == ["cat", "dog"]
    assert len(dataset) == 3
    for _, image, detections in dataset:
        assert image.shape == (20, 24, 3)
        assert detections.xyxy.tolist() == [[6, 4, 16, 12]]
        assert detections.mask.sum() == 80


@pytest.mark.parametrize("name", ["missing.png", "empty", "*.gif"])
def test_an_argument_without_images_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image found"):
        find_images([str(tmp_path / name)], tmp_path / "out")


def test_pictures_overwrite_neither_each_other_nor_the_images(tmp_path: Path) -> None:
    images = [tmp_path / "a.png", tmp_path / "b" / "a.jpg", tmp_path / "c" / "A.jpg", tmp_path / "a_2.jpg"]
    pictures = name_pictures(images, tmp_path)
    assert pictures[0].name == "a_2.png"
    assert len({picture.name.casefold() for picture in pictures}) == 4
    assert not set(pictures) & set(images)
    assert [picture.name for picture in name_pictures(images[:1], tmp_path / "out")] == ["a.png"]


def test_results_for_voc_are_written_beside(tmp_path: Path, loads: list[dict]) -> None:
    image = write_image(tmp_path / "2008_000001.jpg")
    arguments = ["segment", str(image), "--checkpoint", "c", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*arguments, "--voc-results", str(tmp_path / "voc")]) == 0
    results = tmp_path / "voc" / "results" / "VOC2012"
    with Image.open(results / "Segmentation" / "comp6_test_cls" / "2008_000001.png") as picture:
        assert np.asarray(picture)[4:12, 6:16].tolist() == [[12] * 10] * 8  # VOC's number of dogs
    assert (results / "Main" / "comp4_det_test_dog.txt").read_text() == ("2008_000001 0.500000 7.00 5.00 16.00 12.00\n")
    assert len(list((results / "Main").iterdir())) == 20
    assert json.loads((results / "Instances" / "comp6_test_inst.json").read_text())[0]["category_id"] == 12


def test_results_for_voc_need_distinct_names(
    tmp_path: Path, loads: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(write_image(tmp_path / name)) for name in ("a.jpg", "b/a.png")]
    arguments = ["segment", *images, "--checkpoint", "c", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--voc-results", str(tmp_path / "voc")]) == 2
    assert "would both be image 'a'" in capsys.readouterr().err
    assert loads == []
