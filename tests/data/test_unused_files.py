"""Every file in the data folder that looks like data is used or reported."""

import json
import shutil
from pathlib import Path

from data_builders import VocObject, annotation, coco_content, make_coco, make_voc, square_polygon, write_picture

from dasnet_lightning.data.sources.open import open_dataset
from dasnet_lightning.data.unused_files import find_unused_files

CAT = VocObject("cat", (6, 6, 15, 15))


def unused(root: Path) -> list[str]:
    problems = find_unused_files(open_dataset(root))
    assert {problem.action for problem in problems} <= {"unused"}
    return [f"{problem.file.relative_to(root).as_posix()}: {problem.record}" for problem in problems]


def roboflow(root: Path, *splits: str) -> Path:
    for number, split in enumerate(splits):
        rows = [annotation(n, image=n, segmentation=square_polygon()) for n in (1, 2)]
        content = coco_content(rows)
        for image in content["images"]:
            image["file_name"] = f"s{number}_{image['file_name']}"
        make_coco(root, content, f"{split}/_annotations.coco.json", split)
    return root


def test_a_test_split_is_reported(tmp_path: Path) -> None:
    assert unused(roboflow(tmp_path, "train", "valid")) == []
    assert unused(roboflow(tmp_path, "train", "valid", "test")) == [
        "test/_annotations.coco.json: 2 images with 2 labels",
        "test: 2 pictures that no annotation in use names",
    ]


def test_pictures_that_no_annotation_names_are_counted_with_the_first(tmp_path: Path) -> None:
    roboflow(tmp_path, "train", "valid")
    for number in range(5):
        write_picture(tmp_path / "train" / f"new{number}.jpg")
    write_picture(tmp_path / ".cache" / "thumbnail.jpg")
    write_picture(tmp_path / "runs" / "first" / "picture.jpg")
    (tmp_path / "runs" / "first" / "run.json").write_text("{}")
    (problem,) = find_unused_files(open_dataset(tmp_path))
    assert problem.record == "5 pictures that no annotation in use names"
    assert problem.message == "not used, the first: new0.jpg, new1.jpg, new2.jpg"


def test_other_json_files_are_not_data(tmp_path: Path) -> None:
    roboflow(tmp_path, "train", "valid")
    (tmp_path / "notes.json").write_text(json.dumps({"images": 3}))
    (tmp_path / "broken.json").write_text("{")
    assert unused(tmp_path) == []


def test_voc_masks_lists_and_annotations_without_an_image_are_reported(tmp_path: Path) -> None:
    root = make_voc(
        tmp_path,
        {key: [CAT] for key in ("a", "b", "c", "d", "e")},
        masked=("a", "b", "d"),
        lists={"train": ["a"], "val": ["b", "c"], "test": ["d", "e"], "cat_test": ["d"], "trainval": ["a", "b", "c"]},
    )
    for name in ("a", "c", "x"):
        (root / "SegmentationClass").mkdir(exist_ok=True)
        shutil.copy(root / "SegmentationObject" / "a.png", root / "SegmentationClass" / f"{name}.png")
    assert unused(root) == [
        "ImageSets/Main/test.txt: 2 images",
        "Annotations: 2 annotation files of images that no list names",
        "JPEGImages: 2 pictures that no annotation in use names",
        "SegmentationClass: 1 mask files of images whose masks were not read",
        "SegmentationClass: 1 mask files without an image in use",
        "SegmentationObject: 1 mask files without an image in use",
    ]


def test_a_single_file_is_a_choice(tmp_path: Path) -> None:
    roboflow(tmp_path, "train", "valid", "test")
    rows = [annotation(n, image=n) for n in range(1, 6)]
    file = make_coco(tmp_path, coco_content(rows, num_images=5), "all.json", "images")
    assert find_unused_files(open_dataset(file)) == ()


def test_the_photographs_have_no_unused_file(shared: Path) -> None:
    for name in ("voc07_subset", "voc12_animals"):
        assert find_unused_files(open_dataset(shared / "data" / name)) == (), name
