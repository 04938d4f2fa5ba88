"""Opening of data sets in any supported layout, and errors that describe all others."""

import json
from pathlib import Path

import numpy as np
import pytest
import shape_writers
from data_builders import (
    VocObject,
    annotation,
    coco_content,
    make_coco,
    make_voc,
    square_polygon,
    write_index_picture,
    write_picture,
)

from dasnet_lightning.data.label_audit import audit_labels
from dasnet_lightning.data.sources.open import open_dataset
from dasnet_lightning.data.unused_files import list_problems
from dasnet_lightning.errors import DataError

CAT = VocObject("cat", (6, 6, 15, 15))
PLACES = [
    ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "train2017", "val2017"),
    ("annotations/instances_train.json", "annotations/instances_val.json", "train", "val"),
    ("annotations/instances_train.json", "annotations/instances_val.json", "images/train", "images/val"),
    ("annotations/instances_train.json", "annotations/instances_val.json", "images", "images"),
    ("annotations/train.json", "annotations/val.json", "images", "images"),
    ("train.json", "val.json", "images", "images"),
    ("train.json", "val.json", "train", "val"),
    ("train.json", "val.json", ".", "."),
    ("train/_annotations.coco.json", "valid/_annotations.coco.json", "train", "valid"),
]


def contents() -> tuple[dict, dict]:
    train = coco_content([annotation(1, segmentation=square_polygon())])
    val = coco_content([annotation(1, image=3)], num_images=3)
    val["images"] = val["images"][2:]
    return train, val


def write_pair(root: Path, places: tuple[str, str, str, str]) -> None:
    train, val = contents()
    make_coco(root, train, places[0], places[2])
    make_coco(root, val, places[1], places[3])


@pytest.mark.parametrize("places", PLACES)
def test_coco_layouts_are_recognized(tmp_path: Path, places: tuple[str, str, str, str]) -> None:
    write_pair(tmp_path, places)
    data = open_dataset(tmp_path)
    assert (data.format, len(data.train.records), len(data.val.records)) == ("coco", 2, 1)
    assert data.train.class_names == data.val.class_names == ("background", "cat", "dog")
    assert data.val.records[0].path == tmp_path / places[3] / "a3.jpg"
    assert data.problems == ()


@pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_recognized_at_any_level(tmp_path: Path, below: str) -> None:
    root = make_voc(
        tmp_path / below, {"a": [CAT], "b": [CAT]}, ["a"], {"train": ["a"], "val": ["b"], "trainval": ["a", "b"]}
    )
    data = open_dataset(str(tmp_path))
    assert (data.format, data.root) == ("voc", root)
    assert [record.image_id for record in data.train.records + data.val.records] == ["a", "b"]


def test_voc_without_a_validation_list_is_split(tmp_path: Path) -> None:
    make_voc(tmp_path, {f"i{n}": [CAT] for n in range(10)}, ["i3"], {"trainval": [f"i{n}" for n in range(10)]})
    data = open_dataset(tmp_path)
    assert (len(data.train.records), len(data.val.records)) == (8, 2)
    assert "no validation split" in data.problems[0].message


def test_both_splits_share_their_classes(tmp_path: Path) -> None:
    train, val = contents()
    val["categories"] = [{"id": 1, "name": "zebra"}, {"id": 5, "name": "cat"}]
    make_coco(tmp_path, train, "train.json", "images")
    make_coco(tmp_path, val, "val.json", "images")
    data = open_dataset(tmp_path)
    assert data.train.class_names == data.val.class_names == ("background", "cat", "dog", "zebra")
    assert data.train.records[0].objects[0].label == 1
    assert data.val.records[0].objects[0].label == 3


def test_a_single_file_gives_a_fifth_for_validation(tmp_path: Path) -> None:
    rows = [annotation(n, image=n, segmentation=square_polygon()) for n in range(1, 21)]
    rows.append(annotation(21, image=1, bbox=[1, 1, 0, 1]))
    file = make_coco(tmp_path, coco_content(rows, num_images=20), "all.json", "images")
    first, second = open_dataset(file, fix="drop"), open_dataset(tmp_path, fix="drop")
    assert (len(first.train.records), len(first.val.records)) == (16, 4)
    assert [record.image_id for record in first.val.records] == [record.image_id for record in second.val.records]
    assert not {r.image_id for r in first.train.records} & {r.image_id for r in first.val.records}
    assert first.problems[0].action == "warning"
    assert "4 of 20 images" in first.problems[0].message
    record = first.val.records[0]
    assert first.val.load_masks(record, [0]).valid == (True,)
    rows_seen = [*audit_labels(first.train, None, "train"), *audit_labels(first.val, None, "val")]
    assert len(rows_seen) == 21, "refused labels are counted once"


def test_added_images_move_no_other_out_of_validation(tmp_path: Path) -> None:
    def val_ids(number: int) -> set[str]:
        content = coco_content([annotation(1)], num_images=number)
        file = make_coco(tmp_path / str(number), content, "all.json", "images")
        return {record.image_id for record in open_dataset(file).val.records}

    small, large = val_ids(50), val_ids(55)
    assert len(small - large) <= 3


def test_too_few_images_cannot_be_split(tmp_path: Path) -> None:
    file = make_coco(tmp_path, coco_content([annotation(1)]), "all.json", "images")
    with pytest.raises(DataError, match="only 2 images"):
        open_dataset(file)


def test_the_same_image_in_both_splits_is_warned_about(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": [CAT], "b": [CAT]}, lists={"train": ["a", "b"], "val": ["b"]})
    (problem,) = open_dataset(tmp_path).problems
    assert problem.action == "warning"
    assert "1 images are in both splits" in problem.message
    assert "b.jpg" in problem.message


def test_copies_of_an_image_are_noticed_by_their_content(tmp_path: Path) -> None:
    content = coco_content([annotation(1)])
    make_coco(tmp_path, content, "train.json", "train")
    make_coco(tmp_path, content, "val.json", "val")
    write_picture(tmp_path / "val" / "a2.jpg", seed=99)
    (problem,) = open_dataset(tmp_path).problems
    assert "1 images" in problem.message
    assert "a1.jpg" in problem.message


def test_options_reach_the_sources(tmp_path: Path) -> None:
    write_pair(tmp_path, PLACES[1])
    file = tmp_path / PLACES[1][0]
    content = json.loads(file.read_text())
    content["annotations"].append(annotation(2, bbox=[1, 1, 0, 0]))
    file.write_text(json.dumps(content))
    (tmp_path / "train" / "a2.jpg").unlink()
    with pytest.raises(DataError, match=r"a2\.jpg"):
        open_dataset(tmp_path, fix="drop")
    with pytest.raises(DataError, match="zero width"):
        open_dataset(tmp_path, allow_missing=True)
    assert len(open_dataset(tmp_path, allow_missing=True, fix="drop").train.records) == 1


def test_images_that_lie_nowhere_are_named_with_the_places(tmp_path: Path) -> None:
    write_pair(tmp_path, PLACES[1])
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"none of its images was found \(the first is 'a1\.jpg'\), searched .*images"):
        open_dataset(tmp_path)


def test_several_candidates_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, PLACES[0])
    make_coco(tmp_path, contents()[0], "annotations/instances_train2014.json", "train2014")
    with pytest.raises(DataError, match=r"instances_train2014\.json, instances_train2017\.json; keep one"):
        open_dataset(tmp_path)
    for name in ("x.json", "y.json"):
        make_coco(tmp_path / "two", contents()[0], name, "images")
    with pytest.raises(DataError, match=r"x\.json, y\.json"):
        open_dataset(tmp_path / "two")


def test_yolo_without_classes_or_splits_says_what_is_missing(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match="YOLO data set without class names"):
        open_dataset(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.yaml").write_text("nc: 1\n")
    with pytest.raises(DataError, match="has no 'train' with images"):
        open_dataset(tmp_path / "other")


@pytest.mark.parametrize("name", ["coco", "yolo", "labelme", "cvat", "label_studio", "voc"])
def test_every_format_of_objects_is_opened(tmp_path: Path, name: str) -> None:
    items = [shape_writers.Item(1, (1.0, 2.0, 20.0, 21.0)), shape_writers.Item(2, (3.0, 4.0, 30.0, 29.0))]
    getattr(shape_writers, f"write_{name}")(tmp_path, [items] * 10)
    data = open_dataset(tmp_path)
    assert data.format == name
    assert (len(data.train.records), len(data.val.records)) == (8, 2)
    assert data.train.class_names == data.val.class_names == ("background", "cat", "dog")
    assert "no validation split" in data.problems[-1].message


def test_one_coco_file_for_each_image_is_opened(tmp_path: Path) -> None:
    for number in range(5):
        content = coco_content([annotation(1)], num_images=1)
        content["images"][0]["file_name"] = f"p{number}.jpg"
        make_coco(tmp_path, content, f"p{number}.json", ".")
    data = open_dataset(tmp_path)
    assert (data.format, len(data.train.records), len(data.val.records)) == ("coco", 4, 1)


def test_coco_files_in_other_spellings_are_opened(tmp_path: Path) -> None:
    write_pair(
        tmp_path, ("annotations/instances_Train.json", "annotations/instances_Val.json", "images/Train", "images/val")
    )
    data = open_dataset(tmp_path)
    assert (len(data.train.records), len(data.val.records), data.problems) == (2, 1, ())


def test_a_test_split_of_coco_is_reported(tmp_path: Path) -> None:
    write_pair(tmp_path, PLACES[-1])
    make_coco(tmp_path, contents()[0], "test/_annotations.coco.json", "test")
    (problem,) = [item for item in open_dataset(tmp_path).problems if "test" in item.file.parts]
    assert problem.message == "this test split is used neither for training nor for validation"


def test_cvat_masks_and_a_voc_list_called_default_are_opened(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {f"i{n}": [CAT] for n in range(10)}, ["i3"], {"default": [f"i{n}" for n in range(10)]})
    write_index_picture(root / "SegmentationObject" / "lost.png", np.zeros((30, 40), int))
    data = open_dataset(tmp_path)
    assert (data.format, len(data.train.records)) == ("voc", 8)
    assert any("1 mask files without an image in use" in str(problem) for problem in list_problems(data))
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ncat:1,2,3::\n")
    assert open_dataset(tmp_path).format == "cvat"


def test_what_is_no_data_set_is_described(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder contains nothing; expected VOC"):
        open_dataset(tmp_path / "empty")
    write_picture(tmp_path / "pictures" / "a.jpg")
    (tmp_path / "pictures" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"the folder contains notes\.txt, 1 images; expected"):
        open_dataset(tmp_path / "pictures")
    with pytest.raises(DataError, match="not a data set"):
        open_dataset(tmp_path / "pictures" / "notes.txt")
    (tmp_path / "half" / "Annotations").mkdir(parents=True)
    with pytest.raises(DataError, match="looks like VOC but has no folder JPEGImages"):
        open_dataset(tmp_path / "half")


@pytest.mark.parametrize(("lists", "words"), [({}, "without lists"), ({"test": ["a"]}, "lists test, expected")])
def test_voc_without_usable_lists_says_what_is_missing(tmp_path: Path, lists: dict[str, list[str]], words: str) -> None:
    make_voc(tmp_path, {"a": [CAT]}, lists=lists)
    with pytest.raises(DataError, match=words):
        open_dataset(tmp_path)


@pytest.mark.parametrize(("name", "train", "val"), [("voc12_animals", 671, 288), ("voc07_subset", 238, 259)])
def test_the_photographs_open(shared: Path, name: str, train: int, val: int) -> None:
    data = open_dataset(shared / "data" / name)
    assert (len(data.train.records), len(data.val.records), data.problems) == (train, val, ())
