"""COCO files as label tools write them: what has one meaning is read and counted, everything else is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_builders import SIZE, annotation, coco_content, make_coco, square_polygon, write_picture

from dasnet_lightning.data.records import MaskState
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.open import open_dataset
from dasnet_lightning.errors import DataError
from dasnet_lightning.rle import encode_mask

Content = dict[str, Any]


def write(root: Path, content: Content) -> COCOSource:
    """Write the pictures of a usual file, then this content, and open it."""
    file = make_coco(root, coco_content([], num_images=len(content["images"])))
    file.write_text(json.dumps(content))
    return COCOSource(file, root / "train")


def notes(source: COCOSource) -> str:
    return "\n".join(str(problem) for problem in source.problems if problem.action == "warning")


def change_rows(table: str, **values: Callable[[Any], Any]) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        for row in content[table]:
            row.update({key: function(row.get(key)) for key, function in values.items()})

    return change


def drop_keys(table: str, *keys: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        for row, key in ((row, key) for row in content[table] for key in keys):
            row.pop(key)

    return change


def usual() -> Content:
    return coco_content([annotation(n, image=1 + n % 2, segmentation=square_polygon()) for n in (1, 2, 3)])


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (change_rows("images", width=float, height=float), "2 values of 'width' are written as floats"),
        (change_rows("images", width=str, height=str), "2 values of 'height' are written as text"),
        (change_rows("images", width=lambda _: 0, height=lambda _: 0), "2 images without width and height"),
        (change_rows("images", width=lambda _: None), "2 images without width and height"),
        (drop_keys("images", "width", "height"), "2 images without width and height got the size of their image"),
        (change_rows("images", id=float), "2 values of 'id' are written as floats"),
        (change_rows("annotations", image_id=str), "3 values of 'image_id' differ from the ids by being text"),
        (change_rows("annotations", category_id=float), "3 values of 'category_id' are written as floats"),
        (change_rows("annotations", category_id=str), "3 values of 'category_id' differ from the ids"),
        (change_rows("annotations", iscrowd=lambda _: "0"), "3 values of 'iscrowd' are written as text"),
        (change_rows("annotations", iscrowd=lambda _: "false"), "3 values of 'iscrowd' are written as text"),
        (change_rows("annotations", iscrowd=lambda _: [0]), "3 values of 'iscrowd' are written as lists"),
        (change_rows("annotations", iscrowd=lambda _: False), "3 values of 'iscrowd' are written as true or false"),
        (change_rows("annotations", iscrowd=lambda _: None), ""),
        (drop_keys("annotations", "iscrowd"), ""),
        (drop_keys("annotations", "id"), "3 annotations without ids were numbered"),
        (change_rows("annotations", bbox=lambda box: [str(value) for value in box]), "3 boxes with numbers as text"),
    ],
)
def test_values_with_one_meaning_are_read_and_counted(
    tmp_path: Path, change: Callable[[Content], None], note: str
) -> None:
    content = usual()
    change(content)
    source = write(tmp_path, content)
    assert [record.size for record in source.records] == [SIZE, SIZE]
    objects = [item for record in source.records for item in record.objects]
    assert [(item.box, item.label, item.mask, item.ignore) for item in objects] == [
        ((5, 5, 15, 15), 1, MaskState.PRESENT, False)
    ] * 3
    assert sorted(item.object_id for item in objects) == ["1", "2", "3"]
    assert note in notes(source)


@pytest.mark.parametrize("value", [1, "1", True, "true", 1.0, [1]])
def test_crowd_objects_are_crowd_in_every_writing(tmp_path: Path, value: Any) -> None:
    source = write(tmp_path, coco_content([annotation(1, iscrowd=value)]))
    assert source.records[0].objects[0].ignore


POLYGON = square_polygon()[0]
MASK = np.zeros(SIZE, bool)
MASK[5:15, 5:15] = True
COUNTS = encode_mask(MASK).decode()
RUNS = np.diff([0, *(np.flatnonzero(np.diff(MASK.ravel(order="F").astype(int))) + 1), MASK.size]).tolist()


@pytest.mark.parametrize(
    "segmentation",
    [
        POLYGON,
        [str(value) for value in POLYGON],
        [[str(value) for value in POLYGON]],
        [{"x": x, "y": y} for x, y in zip(POLYGON[::2], POLYGON[1::2], strict=True)],
        [[x, y] for x, y in zip(POLYGON[::2], POLYGON[1::2], strict=True)],
        [[[x, y] for x, y in zip(POLYGON[::2], POLYGON[1::2], strict=True)]],
        [{"size": list(SIZE), "counts": COUNTS}],
        {"size": list(SIZE), "counts": str(COUNTS.encode())},
        {"size": [float(side) for side in SIZE], "counts": [float(count) for count in RUNS]},
        {"size": [str(side) for side in SIZE], "counts": COUNTS},
    ],
)
def test_masks_of_all_writings_are_read_and_counted(tmp_path: Path, segmentation: Any) -> None:
    source = write(tmp_path, coco_content([annotation(1, segmentation=segmentation)]))
    assert source.records[0].objects[0].mask is MaskState.PRESENT
    masks = source.load_masks(source.records[0], [0])
    assert masks.valid == (True,)
    assert (masks.masks[0] & MASK).sum() > 0.9 * (masks.masks[0] | MASK).sum()
    assert "segmentations: 1 " in notes(source)


@pytest.mark.parametrize("segmentation", [{}, "", [], None])
def test_an_empty_segmentation_is_absent(tmp_path: Path, segmentation: Any) -> None:
    source = write(tmp_path, coco_content([annotation(1, segmentation=segmentation)]))
    assert source.records[0].objects[0].mask is MaskState.ABSENT


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": list(SIZE)[::-1], "counts": RUNS}, "are height and width swapped"),
        ([{"x": 1}, {"x": 2}, {"x": 3}], "is not a list of numbers"),
        ([[1, 2], [3, "a"], [5, 6]], "polygon 1 of 3 has fewer than three|not a number"),
        ([{"size": list(SIZE), "counts": RUNS}] * 2, "is not a list of numbers"),
    ],
)
def test_ambiguous_masks_are_invalid_and_keep_the_box(tmp_path: Path, segmentation: Any, words: str) -> None:
    source = write(tmp_path, coco_content([annotation(1, segmentation=segmentation)]))
    (item,) = source.records[0].objects
    assert item.mask is MaskState.INVALID
    assert any(part in item.reason for part in words.split("|"))


@pytest.mark.parametrize("box", [[], None, [0, 0, 0, 0]])
@pytest.mark.parametrize("segmentation", [square_polygon(), {"size": list(SIZE), "counts": COUNTS}])
def test_a_missing_box_is_the_extent_of_its_mask(tmp_path: Path, box: Any, segmentation: Any) -> None:
    source = write(tmp_path, coco_content([annotation(1, bbox=box, segmentation=segmentation)]))
    assert source.records[0].objects[0].box == (5, 5, 15, 15)
    assert "1 annotations have no box and got the extent of their mask" in notes(source)


@pytest.mark.parametrize(
    "name",
    [
        "..\\..\\media\\upload\\4\\a1.jpg",
        "/data/somewhere/a1.jpg",
        "C:\\data\\a1.jpg",
        "https://example.org/bucket/a1.jpg?signature=x/y",
        "s3://bucket/a1.jpg",
        "/data/local-files/?d=folder/a1.jpg",
        "https://example.org/my%20folder/a1.jpg",
    ],
)
def test_foreign_names_are_matched_by_their_last_part(tmp_path: Path, name: str) -> None:
    content = coco_content([annotation(1)])
    content["images"][0]["file_name"] = name
    source = write(tmp_path, content)
    assert source.records[0].path == tmp_path / "train" / "a1.jpg"
    assert f"'a1.jpg' for '{name}'" in notes(source)
    assert ("URLs" in notes(source)) == ("://" in name)


def test_a_data_set_of_urls_or_foreign_folders_is_found(tmp_path: Path) -> None:
    content = coco_content([annotation(1)], num_images=5)
    file = make_coco(tmp_path, content, "result.json", "images")
    for prefix in ("https://example.org/bucket/", "../media/", "upload/4/"):
        for number, image in enumerate(content["images"], start=1):
            image["file_name"] = f"{prefix}a{number}.jpg"
        file.write_text(json.dumps(content))
        assert len(open_dataset(tmp_path).train.records) == 4


def test_urls_without_a_file_are_named_as_such(tmp_path: Path) -> None:
    content = coco_content([annotation(1)])
    content["images"][0]["file_name"] = "https://example.org/none.jpg"
    with pytest.raises(DataError, match=r"image 'https://example\.org/none\.jpg': the name is a URL.*download"):
        write(tmp_path, content)
    file = make_coco(tmp_path / "other", coco_content([]), "result.json", "elsewhere")
    for image in content["images"]:
        image["file_name"] = "https://example.org/none.jpg" + str(image["id"])
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"the first is the URL 'https://example\.org/none\.jpg1'; download"):
        open_dataset(file)


def test_ambiguous_foreign_names_are_refused(tmp_path: Path) -> None:
    content = coco_content([annotation(1)])
    content["images"][0]["file_name"] = "../x/b.jpg"
    for folder in ("one", "two"):
        write_picture(tmp_path / "train" / folder / "b.jpg")
    with pytest.raises(DataError, match="file names are refused"):
        write(tmp_path, content)
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "../x/a1.jpg", "../y/a1.jpg"
    with pytest.raises(DataError, match="2 file names are refused"):
        write(tmp_path, content)


def test_percent_encoded_names_are_unquoted(tmp_path: Path) -> None:
    content = coco_content([annotation(1)])
    content["images"][0]["file_name"] = "my%20pictures/gr%C3%B6%C3%9Fe%201.jpg"
    picture = write_picture(tmp_path / "train" / "my pictures" / "größe 1.jpg")
    assert write(tmp_path, content).records[0].path == picture
    content["images"][0]["file_name"] = "100%25.jpg"  # the literal name comes first
    literal = write_picture(tmp_path / "train" / "100%25.jpg")
    write_picture(tmp_path / "train" / "100%.jpg")
    assert write(tmp_path, content).records[0].path == literal


def test_roboflows_root_category_is_dropped_with_a_note(tmp_path: Path) -> None:
    content = coco_content([annotation(1, category=1)], categories=((0, "fish"), (1, "fish")))
    content["categories"][0]["supercategory"] = "none"
    content["categories"][1]["supercategory"] = "fish"
    source = write(tmp_path, content)
    assert source.class_names == ("background", "fish")
    assert source.category_ids == {1: 1}
    assert "dropped supercategories without annotations: 'fish' (id 0)" in notes(source)


def test_a_supercategory_with_annotations_stays(tmp_path: Path) -> None:
    rows = [annotation(1, category=0), annotation(2, category=1)]
    content = coco_content(rows, categories=((0, "animal"), (1, "fish")))
    content["categories"][1]["supercategory"] = "animal"
    content["categories"][0]["supercategory"] = "animal"  # its own supercategory, as in COCO's person
    assert write(tmp_path, content).class_names == ("background", "animal", "fish")
    content["annotations"] = rows[:1]
    assert write(tmp_path, content).class_names == ("background", "animal", "fish")
    content["categories"][1]["name"] = "animal"
    content["annotations"] = rows
    with pytest.raises(DataError, match="category name 'animal': occurs 2 times"):
        write(tmp_path, content)


def test_an_unused_background_category_is_the_background(tmp_path: Path) -> None:
    content = coco_content([annotation(1, category=1)], categories=((0, "Background"), (1, "cat")))
    source = write(tmp_path, content)
    assert source.class_names == ("background", "cat")
    assert "dropped the background, which has no annotations: 'Background' (id 0)" in notes(source)


@pytest.mark.parametrize(("name", "other"), [("background", "background (class)"), ("all", "all (class)")])
def test_reserved_names_of_classes_get_a_suffix(tmp_path: Path, name: str, other: str) -> None:
    source = write(tmp_path, coco_content([annotation(1)], categories=((1, name), (2, "void"))))
    assert source.class_names == ("background", other, "void")
    assert f"renamed, because the names are reserved or hold control characters: '{name}' as '{other}'" in notes(source)
    assert source.category_ids == {1: 1, 2: 2}


def test_numbers_as_class_names_and_line_breaks_stay_on_one_line(tmp_path: Path) -> None:
    rows = [annotation(1, bbox=[30, 10, 50, 10], category=2)]
    source = write(tmp_path, coco_content(rows, categories=((1, 7), (2, "line\nbreak"))))  # type: ignore[arg-type]
    assert source.class_names == ("background", "7", "line break")
    assert r"'line\nbreak' as 'line break'" in notes(source)
    assert all("\n" not in str(problem) for problem in source.problems)
