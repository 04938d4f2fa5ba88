"""`dasnet data` on small COCO sets: all is counted, nothing is dropped silently, and the exit code tells."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dasnet_lightning.cli.main import main

SQUARE = [[4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 18.0]]


def make_set(root: Path, faults: tuple[str, ...] = ()) -> Path:
    """Two splits of two images; image 1 holds a cat with a mask and a dog without."""
    for split in ("train", "val"):
        images = [{"id": k, "file_name": f"{split}_{k}.png", "width": 40, "height": 30} for k in (1, 2)]
        folder = root / split
        folder.mkdir(parents=True)
        for image in images:
            pixels = np.random.default_rng(image["id"] + len(split)).integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(image["file_name"]))
        rows: list[dict[str, Any]] = [
            {"id": 1, "image_id": 1, "category_id": 5, "bbox": [4, 4, 16, 16], "segmentation": SQUARE, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 9, "bbox": [10, 10, 12, 12], "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 9, "bbox": [2, 2, 30, 20], "iscrowd": 1},
        ]
        if split == "train":
            rows += [row for name, row in FAULTS.items() if name in faults]
        content = {
            "images": images,
            "annotations": rows,
            "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
        }
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


FAULTS: dict[str, dict[str, Any]] = {
    "zero width": {"id": 70, "image_id": 1, "category_id": 5, "bbox": [30, 10, 0, 10], "iscrowd": 0},
    "two points": {
        "id": 71, "image_id": 2, "category_id": 5, "bbox": [2, 2, 9, 9], "segmentation": [[2, 2, 9, 9]], "iscrowd": 0,
    },
    "empty mask": {
        "id": 72, "image_id": 2, "category_id": 5, "bbox": [2, 2, 9, 9],
        "segmentation": {"size": [30, 40], "counts": [1200]}, "iscrowd": 0,
    },
    "overhang": {"id": 73, "image_id": 2, "category_id": 9, "bbox": [30, 10, 15, 10], "iscrowd": 0},
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_good_set_is_counted_and_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_set(tmp_path / "set")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    rows_file, counts_file = tmp_path / "rows.csv", tmp_path / "counts.json"
    assert main(["data", str(root), "--csv", str(rows_file), "--json", str(counts_file)]) == 0
    text = capsys.readouterr().out
    assert "COCO, 2 classes" in text
    assert "6 labels were read, this data set can be used." in text
    lines = [line.split() for line in text.splitlines()]
    assert "split  images  with masks  boxes  masks  no mask  invalid mask  ignored  refused" in text
    assert ["train", "2", "1", "3", "1", "2", "0", "1", "0"] in lines
    assert ["dog", "4", "4", "0", "4", "0", "2", "0"] in lines
    with rows_file.open() as stream:
        assert len(list(csv.DictReader(stream))) == 6
    content = read_json(counts_file)
    assert content["usable"] is True
    assert content["images"] == {"train": 2, "val": 2}
    assert content["classes"]["cat"]["masks"] == 2
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("fault", "heading", "text"),
    [
        ("zero width", "Labels refused (1)", "annotation 70 (image 'train_1.png', class 'cat'): box [30, 10, 0, 10]"),
        ("two points", "Masks that cannot be used; their boxes are (1)", "object 71 (cat)"),
        ("empty mask", "Masks that cannot be used; their boxes are (1)", "object 72 (cat)"),
    ],
)
def test_labels_that_cannot_be_used_are_listed(
    tmp_path: Path, fault: str, heading: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_set(tmp_path / "set", (fault,))
    assert main(["data", str(root), "--csv", str(tmp_path / "rows.csv")]) == 2
    captured = capsys.readouterr()
    assert heading in captured.out
    assert text in captured.out
    assert "1 entry above cannot be used" in captured.err
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + 7
    assert main(["data", str(root), "--fix", "drop"]) == 0
    assert heading in capsys.readouterr().out


def test_a_clipped_box_is_listed_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(make_set(tmp_path / "set", ("overhang",)))]) == 0
    text = capsys.readouterr().out
    assert "Boxes clipped at the border of their image (1)" in text
    assert "annotation 73" in text


def test_a_broken_image_is_found_by_decoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_set(tmp_path / "set")
    image = root / "val" / "val_2.png"
    image.write_bytes(image.read_bytes()[:-900])
    assert main(["data", str(root), "--fix", "drop"]) == 2
    text = capsys.readouterr().out
    assert "Images that cannot be read (1)" in text
    assert "val_2.png" in text
    assert main(["data", str(root), "--fast"]) == 0
    assert "images and masks were not opened (--fast)" in capsys.readouterr().out


def test_a_missing_image_is_listed_unless_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_set(tmp_path / "set")
    (root / "train" / "train_2.png").unlink()
    assert main(["data", str(root), "--json", str(tmp_path / "x.json")]) == 2
    captured = capsys.readouterr()
    assert "Images that are missing (1)" in captured.out
    assert "Labels of missing images (1)" in captured.out
    assert "image 'train_2.png'" in captured.out
    assert read_json(tmp_path / "x.json")["usable"] is False
    assert "1 entry above cannot be used" in captured.err  # the image; its label goes with it
    assert main(["data", str(root), "--fix", "drop"]) == 2
    assert main(["data", str(root), "--allow-missing"]) == 0


def test_at_most_twenty_are_shown_and_all_are_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_set(tmp_path / "set")
    content = read_json(root / "train.json")
    content["annotations"] += [FAULTS["zero width"] | {"id": 100 + k} for k in range(25)]
    (root / "train.json").write_text(json.dumps(content))
    assert main(["data", str(root), "--json", str(tmp_path / "x.json")]) == 2
    text = capsys.readouterr().out
    assert "Labels refused (25)" in text
    assert text.count("has zero width") == 20
    assert f"... and 5 more, all in {tmp_path / 'x.json'}" in text
    refused = [item for item in read_json(tmp_path / "x.json")["problems"] if item["action"] == "refused"]
    assert len(refused) == 25


def test_a_set_that_cannot_be_opened_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: does not exist" in capsys.readouterr().err
    root = make_set(tmp_path / "set")
    content = read_json(root / "train.json")
    content["images"][0]["file_name"] = "../secret.png"
    (root / "train.json").write_text(json.dumps(content))
    assert main(["data", str(root), "--json", str(tmp_path / "x.json")]) == 2
    assert "climbs out of the image folder" in capsys.readouterr().err
    assert read_json(tmp_path / "x.json")["problems"][0]["action"] == "refused"


def test_real_photographs_with_few_masks(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(shared / "data" / "voc07_subset"), "--no-verify"]) == 0  # the hidden former name of --fast
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    splits, total = [line for line in lines if line[:1] == ["all"]]
    assert splits[:5] == ["all", "497", "0", "1,564", "0"]
    assert total[:5] == ["all", "497", "1,564", "0", "115"], "no mask counts as present before it was decoded"


def make_sbd(root: Path) -> Path:
    """An SBD folder of three images, each with a cat of 12 x 10 pixels."""
    for name in ("img", "inst"):
        (root / name).mkdir(parents=True)
    picture = np.zeros((30, 40), dtype=np.uint8)
    picture[5:15, 8:20] = 1
    for number in range(3):
        Image.fromarray(np.full((30, 40, 3), number, dtype=np.uint8)).save(root / "img" / f"2008_{number}.jpg")
        content = {"Segmentation": picture, "Categories": np.array([[8]], dtype=np.uint8)}
        savemat(root / "inst" / f"2008_{number}.mat", {"GTinst": content}, do_compression=True)
    (root / "train.txt").write_text("2008_0\n2008_1\n")
    (root / "val.txt").write_text("2008_2\n")
    return root


def test_sbd_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_sbd(tmp_path / "benchmark_RELEASE" / "dataset")
    assert main(["data", str(tmp_path / "benchmark_RELEASE")]) == 0
    text = capsys.readouterr().out
    assert f"{root}: SBD, 20 classes" in text
    assert ["cat", "3", "3", "3", "0", "0", "0", "0"] in [line.split() for line in text.splitlines()]
    assert "Worth knowing (1)" in text  # that the boxes come from the masks, said once for both splits
    (root / "inst" / "2008_1.mat").write_text("<html>404</html>")
    assert main(["data", str(root)]) == 2
    assert (
        "2008_1.mat: image '2008_1.jpg': cannot be read as a MATLAB file, it is an HTML page" in capsys.readouterr().err
    )


def test_a_list_of_parts_is_counted_and_asserted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sbd(tmp_path / "sbd")
    file = tmp_path / "parts.yaml"
    file.write_text("train: [{root: sbd, split: all}]\nval: [{root: sbd, split: val}]\nexpect: {train: 2}\n")
    assert main(["data", str(file), "--json", str(tmp_path / "x.json")]) == 0
    text = capsys.readouterr().out
    assert "parts.yaml: UNION, 20 classes" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["train", "2", "2", "2", "2", "0", "0", "0", "0"] in lines
    assert ["val", "1", "1", "1", "1", "0", "0", "0", "0"] in lines
    assert "1 are in the validation split and left out of training: 2008_2" in text
    assert read_json(tmp_path / "x.json")["images"] == {"train": 2, "val": 1}
    file.write_text(file.read_text().replace("train: 2}", "train: 3}"))
    assert main(["data", str(file)]) == 2
    assert "parts.yaml: train: has 2 images, expected 3" in capsys.readouterr().out
    assert main(["data", str(file), "--allow-missing"]) == 0
    file.write_text("train: [{root: sbd, spilt: all}]\n")
    capsys.readouterr()
    assert main(["data", str(file)]) == 2
    assert "train, part 1: unknown key 'spilt', did you mean 'split'?" in capsys.readouterr().err
