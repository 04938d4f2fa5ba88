"""COCO files: masks in all three encodings, absent masks that stay absent, and errors that name every faulty record."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_builders import SIZE, annotation, coco_content, make_coco, square_polygon, write_picture
from pycocotools import mask as coco_mask

from dasnet_lightning.data.records import MaskState
from dasnet_lightning.data.sources.checks import RecordsError
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.errors import DataError


def open_coco(root: Path, content: dict[str, Any], **options: Any) -> COCOSource:
    return COCOSource(make_coco(root, content), root / "train", **options)


def refuse(root: Path, content: Any, words: str, **options: Any) -> DataError:
    """Write any JSON beside the pictures of a good file, and expect an error with these words."""
    file = make_coco(root, coco_content([]))
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        COCOSource(file, root / "train", **options)
    assert str(file) in str(caught.value)
    return caught.value


def run_lengths() -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[5:15, 5:14] = 1
    runs = coco_mask.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    counts = np.diff(np.concatenate(([0], np.flatnonzero(np.diff(flat.astype(int))) + 1, [flat.size]))).tolist()
    size = list(SIZE)
    return {"size": size, "counts": runs["counts"].decode()}, {"size": size, "counts": counts}, mask.astype(bool)


def test_records_hold_boxes_labels_and_mask_states(tmp_path: Path) -> None:
    rows = [
        annotation(11, segmentation=square_polygon()),
        annotation(12, category=2, bbox=[1.5, 2, 3, 4.5]),
        annotation(13, segmentation=None),
        annotation(14, segmentation=[]),
        annotation(15, iscrowd=1, segmentation=run_lengths()[1]),
        annotation(16, segmentation=[[1, 2, 3, 4]]),
    ]
    source = open_coco(tmp_path, coco_content(rows))
    first, second = source.records
    present, absent, invalid = MaskState.PRESENT, MaskState.ABSENT, MaskState.INVALID
    assert [item.mask for item in first.objects] == [present, absent, absent, absent, present, invalid]
    assert [item.ignore for item in first.objects] == [False, False, False, False, True, False]
    assert first.objects[1].box == (1.5, 2, 4.5, 6.5)
    assert [item.object_id for item in first.objects] == ["11", "12", "13", "14", "15", "16"]
    assert first.size == SIZE
    assert second.objects == ()
    (problem,) = source.problems
    assert problem.action == "mask_invalid"
    assert "annotation 16 (image 'a1.jpg', class 'cat')" in str(problem)
    assert "fewer than three distinct points; its box is used" in str(problem)


def test_masks_of_all_writings_are_decoded(tmp_path: Path) -> None:
    short, long, mask = run_lengths()
    rows = [
        annotation(1, segmentation=short),
        annotation(2, segmentation=long),
        annotation(3, segmentation=square_polygon()),
    ]
    source = open_coco(tmp_path, coco_content(rows))
    masks = source.load_masks(source.records[0], [2, 0, 1])
    assert masks.valid == (True, True, True)
    assert masks.void is None
    np.testing.assert_array_equal(masks.masks[1], mask)
    np.testing.assert_array_equal(masks.masks[2], mask)
    assert masks.masks[0][5:13, 5:15].all()


def test_only_the_objects_asked_for_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_coco(tmp_path, coco_content([annotation(n, segmentation=square_polygon()) for n in (1, 2, 3)]))
    decoded: list[int] = []
    real = coco_mask.frPyObjects
    monkeypatch.setattr(coco_mask, "frPyObjects", lambda *polygons: decoded.append(1) or real(*polygons))
    source.load_masks(source.records[0], [1])
    assert len(decoded) == 1


def test_reading_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_call(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(coco_mask, "frPyObjects", refuse_call)
    monkeypatch.setattr(coco_mask, "decode", refuse_call)
    assert open_coco(tmp_path, coco_content([annotation(1, segmentation=square_polygon())])).records[0].has_masks


def test_a_mask_outside_its_box_is_not_valid(tmp_path: Path) -> None:
    source = open_coco(tmp_path, coco_content([annotation(1, segmentation=square_polygon(25, 15))]))
    masks = source.load_masks(source.records[0], [0])
    assert masks.valid == (False,)
    assert "inside its box" in masks.reasons[0]


def test_labels_follow_the_sorted_ids_and_ids_are_kept(tmp_path: Path) -> None:
    categories = [(90, "dog"), (0, "cat"), (7, "ant")]
    rows = [annotation(1, category=90), annotation(2, category=0)]
    source = open_coco(tmp_path, coco_content(rows, categories=categories))
    assert source.class_names == ("background", "cat", "ant", "dog")
    assert source.category_ids == {1: 0, 2: 7, 3: 90}
    assert [item.label for item in source.records[0].objects] == [3, 1]
    assert [problem.message for problem in source.problems] == ["without any annotation: ant"]


def test_given_class_names_decide_the_labels(tmp_path: Path) -> None:
    content = coco_content([annotation(1, category=2)])
    source = open_coco(tmp_path, content, class_names=("background", "dog", "ant", "cat"))
    assert source.records[0].objects[0].label == 1
    assert source.category_ids == {1: 2, 3: 1}
    with pytest.raises(DataError, match="'dog'"):
        open_coco(tmp_path, content, class_names=("background", "cat"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}], "predictions"),
        ({"images": [], "annotations": [{"id": 1, "caption": "a cat"}]}, "captions"),
        ({"images": [], "annotations": [{"id": 1, "keypoints": [1, 2, 3]}], "categories": []}, "file of keypoints"),
        ({"images": [], "annotations": [{"segments_info": []}], "categories": []}, "panoptic"),
        ({"images": [{}], "annotations": []}, "no list 'categories'"),
        ({"a": 1}, "no list 'images' and no list 'annotations'"),
        ("7", "not a COCO file"),
        ('{"images": [', "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ({**coco_content([]), "categories": []}, "'categories' is empty"),
        ({**coco_content([]), "images": []}, "'images' is empty"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, content: Any, words: str) -> None:
    refuse(tmp_path, content, words)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        COCOSource(tmp_path / "none.json", tmp_path)


@pytest.mark.parametrize(
    ("table", "row", "words"),
    [
        ("images", {"id": 3, "height": 5, "width": 5}, r"images\[2\]: has no 'file_name'"),
        ("images", {"id": 3, "file_name": "x.jpg"}, "1 of 3 images are missing"),
        ("images", {"id": 3, "file_name": "x.jpg", "height": -5, "width": 5}, "'height' is -5, expected a number of"),
        ("images", {"id": 3, "file_name": "x.jpg", "height": 5, "width": "wide"}, "'width' is 'wide', expected"),
        ("images", {"id": 3, "file_name": "x.jpg", "height": 5.5, "width": 5}, "'height' is 5.5, expected"),
        ("images", {"id": True, "file_name": "x.jpg", "height": 5, "width": 5}, "'id' is True, expected an id"),
        ("images", {"id": 3, "file_name": 7, "height": 5, "width": 5}, "'file_name' is 7, expected text"),
        (
            "images",
            {"id": 3, "file_name": "x.jpg", "height": 2**80, "width": 5},
            "'height' is 1208925819614629174706176",
        ),
        ("images", {"id": "1", "file_name": "x.jpg", "height": 5, "width": 5}, "image id '1': occurs 2 times"),
        ("images", {"id": 1, "file_name": "x.jpg", "height": 5, "width": 5}, "image id '1': occurs 2 times"),
        ("images", {"id": 3, "file_name": "a1.jpg", "height": 5, "width": 5}, "image file 'a1.jpg': occurs 2 times"),
        ("annotations", {"id": 5, "image_id": 1}, "has no 'category_id'"),
        ("annotations", {"image_id": 1, "category_id": 1}, r"annotations\[1\]: has no 'id'"),
        ("annotations", 7, "is not a JSON object"),
        ("annotations", annotation(1), "annotation id '1': occurs 2 times"),
        ("annotations", annotation(5, image=99), "annotation 5: refers to the unknown image 99"),
        ("annotations", annotation(5, category=99), "annotation 5: refers to the unknown category 99"),
        ("annotations", annotation(5, image=[]), "'image_id' is .., expected an id"),  # type: ignore[arg-type]
        ("annotations", annotation(5, iscrowd="maybe"), r"annotations\[1\]: 'iscrowd' is 'maybe', expected 0 or 1"),
        ("annotations", annotation(5, iscrowd=2), "'iscrowd' is 2, expected 0 or 1"),
        ("annotations", annotation(5, iscrowd=[0, 1]), "'iscrowd' is .0, 1., expected 0 or 1"),
        ("categories", {"id": 2, "name": "ant"}, "category id '2': occurs"),
        ("categories", {"id": 3, "name": "cat"}, "category name 'cat': occurs"),
        ("categories", {"id": "2", "name": "ant"}, "category id '2': occurs"),
        ("categories", {"id": 3}, "has no 'name'"),
        ("categories", {"id": 3, "name": " "}, "'name' is ' ', expected text"),
    ],
)
def test_records_at_fault_are_listed(tmp_path: Path, table: str, row: Any, words: str) -> None:
    content = coco_content([annotation(1)])
    refuse(tmp_path, {**content, table: [*content[table], row]}, words)


@pytest.mark.parametrize(
    "name", ["/etc/hosts", "../secret.jpg", "C:\\secret.jpg", "%2e%2e/secret.jpg", "..%5csecret.jpg"]
)
@pytest.mark.parametrize("allow_missing", [False, True])
def test_paths_out_of_the_image_root_are_refused(tmp_path: Path, name: str, allow_missing: bool) -> None:
    content = coco_content([])
    content["images"][0]["file_name"] = name
    write_picture(tmp_path / "secret.jpg")
    if "%" not in name:
        refuse(tmp_path, content, "file names are refused", allow_missing=allow_missing)
    else:
        source = open_coco(tmp_path, content, allow_missing=allow_missing)
        assert all(record.path.resolve().is_relative_to(tmp_path / "train") for record in source.records)


def test_all_missing_images_are_listed_at_once_or_left_out(tmp_path: Path) -> None:
    content = coco_content([annotation(1), annotation(2, image=3)], num_images=30)
    file = make_coco(tmp_path, content)
    for number in range(3, 31):
        (tmp_path / "train" / f"a{number}.jpg").unlink()
    with pytest.raises(RecordsError, match="28 of 30 images are missing") as caught:
        COCOSource(file, tmp_path / "train")
    assert len(caught.value.problems) == 28
    assert "... and 8 more" in str(caught.value)
    source = COCOSource(file, tmp_path / "train", allow_missing=True)
    assert len(source.records) == 2
    assert len([problem for problem in source.problems if problem.record.startswith("image ")]) == 28
    assert "annotation 2 (image 'a3.jpg', class 'cat'): its image is missing" in str(source.problems[-1])


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([30, 10, 0, 10], "zero width"),
        ([30, 10, 5, -3], "negative height"),
        ([float("nan"), 1, 5, 5], "not finite"),
        ([1, float("inf"), 5, 5], "not finite"),
        ([100, 10, 5, 5], "outside the image"),
        ([1, 2, 3], "not a list of four numbers"),
        ([1, 2, 3, "4x"], "not a list of four numbers"),
        ([1, 2, 3, 4, 30.0], "not a list of four numbers, five may be a rotated box"),
        ({"x": 1, "y": 2}, "not a list of four numbers"),
        ([], "no mask shows its extent"),
        (None, "not a list of four numbers"),
    ],
)
def test_unusable_boxes_are_an_error_or_dropped(tmp_path: Path, box: Any, words: str) -> None:
    content = coco_content([annotation(1), annotation(2, bbox=box)])
    text = rf"annotation 2 \(image 'a1\.jpg', class 'cat'\): box .*{words}"
    refuse(tmp_path, content, text)
    source = open_coco(tmp_path, content, fix="drop")
    assert [item.object_id for item in source.records[0].objects] == ["1"]
    assert [problem.action for problem in source.problems if problem.action != "warning"] == ["refused"]


def test_boxes_partly_outside_are_clipped_and_listed(tmp_path: Path) -> None:
    source = open_coco(tmp_path, coco_content([annotation(1, bbox=[-5, 20, 20, 20])]))
    assert source.records[0].objects[0].box == (0, 20, 15, 30)
    assert "clipped" in [problem.action for problem in source.problems]


def test_other_conventions_of_boxes_are_recognized(tmp_path: Path) -> None:
    corners = [annotation(n, bbox=box) for n, box in enumerate(([3, 4, 39, 29], [10, 12, 38, 28], [1, 1, 5, 5]))]
    refuse(tmp_path, coco_content(corners), r"\[x0, y0, x1, y1\]", fix="drop")
    refuse(tmp_path, coco_content([annotation(1, bbox=[0.1, 0.1, 0.5, 0.5])]), "normalized", fix="drop")


def test_boxes_exported_as_polygons_are_warned_about(tmp_path: Path) -> None:
    rectangle = [[5, 5, 15, 5, 15, 15, 5, 15]]
    source = open_coco(tmp_path, coco_content([annotation(n, segmentation=rectangle) for n in range(4)]))
    assert any("boxes exported as polygons" in problem.message for problem in source.problems)
    source = open_coco(tmp_path, coco_content([annotation(n, segmentation=square_polygon()) for n in range(4)]))
    assert not any("exported as polygons" in problem.message for problem in source.problems)


def test_key_points_beside_boxes_are_a_note(tmp_path: Path) -> None:
    source = open_coco(tmp_path, coco_content([annotation(1, keypoints=[1, 2, 2])]))
    assert any("keypoints are not used" in problem.message for problem in source.problems)


def test_names_with_spaces_unicode_and_folders_work(tmp_path: Path) -> None:
    content = coco_content([annotation(1)])
    content["images"][0]["file_name"] = "sub folder/größe.jpg"
    file = make_coco(tmp_path, content)
    content["images"][0]["file_name"] = "sub folder\\größe.jpg"
    file.write_text(json.dumps(content))
    assert COCOSource(file, tmp_path / "train").records[0].path.is_file()


def test_a_name_too_long_for_the_disk_is_a_missing_image(tmp_path: Path) -> None:
    content = coco_content([])
    content["images"][0]["file_name"] = "x" * 5000
    refuse(tmp_path, content, "1 of 2 images are missing")
