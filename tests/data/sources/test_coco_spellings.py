"""COCO files whose names or number are unusual."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_builders import annotation, coco_content, square_polygon
from shape_builders import ABSENT, PRESENT, pictures, states

from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.coco_per_image import find_coco_per_image, open_coco_per_image
from dasnet_lightning.data.sources.coco_spellings import find_coco_spelled, spelled_folders
from dasnet_lightning.errors import DataError


def dump(root: Path, name: str, content: Any) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("annotations/instances_Train.json", "annotations/instances_Val.json"),
        ("Annotations/Training.json", "Annotations/Validation.json"),
        ("coco_train.json", "coco_valid.json"),
        ("Train/_annotations.coco.json", "Valid/_annotations.coco.json"),
        ("train/annotations.json", "val/annotations.json"),
        ("TRAIN.json", None),
    ],
)
def test_spellings_of_splits(tmp_path: Path, train: str, val: str | None) -> None:
    for name in (train, val):
        if name:
            dump(tmp_path, name, coco_content([]))
    layout = find_coco_spelled(tmp_path)
    assert layout is not None
    assert (layout.train, layout.val) == (tmp_path / train, val and tmp_path / val)


def test_what_cannot_be_told_apart_is_left_alone(tmp_path: Path) -> None:
    for names in (("a.json", "b.json"), ("train_a.json", "train_b.json"), ("val.json",)):
        for name in names:
            dump(tmp_path / names[0], name, coco_content([]))
        assert find_coco_spelled(tmp_path / names[0]) is None


def test_folders_of_images_in_any_case(tmp_path: Path) -> None:
    pictures(tmp_path, "images/Train/a.jpg", "images/val/b.jpg")
    assert tmp_path / "images" / "Train" in spelled_folders(tmp_path / "annotations/instances_train.json", tmp_path)
    assert tmp_path / "images" / "val" not in spelled_folders(tmp_path / "annotations/instances_train.json", tmp_path)


def single(name: str, *annotations: dict[str, Any], categories: tuple[tuple[int, str], ...]) -> dict[str, Any]:
    content = coco_content(annotations, num_images=1, categories=categories)
    content["images"][0]["file_name"] = name
    return content


def make_singles(root: Path) -> None:
    pictures(root, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    dump(
        root,
        "a.json",
        single("a.jpg", annotation(1, segmentation=square_polygon()), categories=((1, "cat"), (2, "dog"))),
    )
    dump(root, "b.json", single("b.jpg", annotation(1), categories=((1, "dog"),)))
    dump(root, "c.json", single("c.jpg", categories=((7, "owl"),)))


def test_one_file_for_each_image(tmp_path: Path) -> None:
    make_singles(tmp_path)
    contents = find_coco_per_image(tmp_path)
    assert contents is not None
    (content,) = contents.values()
    source = COCOSource(tmp_path, tmp_path, content=content)
    assert source.class_names == ("background", "cat", "dog", "owl")
    assert states(source) == [[PRESENT], [ABSENT], []]
    assert [item.label for record in source.records for item in record.objects] == [1, 2]
    assert source.records[0].objects[0].object_id == "a/1"
    assert source.records[0].path == tmp_path / "images" / "a.jpg"
    assert source.load_masks(source.records[0], [0]).valid == (True,)


def test_splits_by_folder_share_their_classes(tmp_path: Path) -> None:
    make_singles(tmp_path / "train")
    make_singles(tmp_path / "valid")
    contents = find_coco_per_image(tmp_path)
    assert contents is not None
    assert {name: len(content.images) for name, content in contents.items()} == {"train": 3, "val": 3}
    assert contents["train"].categories == contents["val"].categories
    make_singles(tmp_path / "test")
    contents = find_coco_per_image(tmp_path)
    assert contents is not None
    train, val, problems = open_coco_per_image(tmp_path, contents, allow_missing=False, fix="error")
    assert val is not None
    assert (len(train.records), len(val.records)) == (3, 3)
    assert [str(problem) for problem in problems] == [f"{tmp_path}: split 'test': 3 images are not used"]


def test_other_folders_are_not_taken_for_it(tmp_path: Path) -> None:
    for number in range(3):
        dump(tmp_path, f"{number}.json", coco_content([], num_images=2))
    assert find_coco_per_image(tmp_path) is None
    make_singles(tmp_path / "twice")
    dump(tmp_path / "twice", "d.json", single("a.jpg", categories=((1, "cat"),)))
    with pytest.raises(DataError, match=r"several files describe the image 'images/a\.jpg'"):
        find_coco_per_image(tmp_path / "twice")
