"""Files as other versions and other tools write them: read right, or named."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_builders import VocObject, annotation, coco_content, make_coco, make_voc, square_polygon
from shape_builders import ABSENT, INVALID, PRESENT, pictures

from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.data.unused_files import list_problems
from dasnet_lightning.errors import DataError

IMAGES = 5
BOX, POLYGON = "0 0.5 0.5 0.2 0.2", "1 0.1 0.1 0.4 0.1 0.4 0.4"
TRIANGLE = {"label": "cat", "points": [[1, 2], [30, 4], [20, 20]], "shape_type": "polygon", "group_id": None}
CVAT_BOX = '<box label="cat" xtl="1" ytl="2" xbr="30" ybr="20"/>'
RECTANGLE = {
    "type": "rectanglelabels", "original_width": 40, "original_height": 30, "image_rotation": 0,
    "value": {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["cat"]},
}  # fmt: skip


def opened(path: Path) -> tuple[DataSet, list[str]]:
    data = open_dataset(path, allow_missing=True, fix="drop")
    return data, [f"{problem.action}: {problem}" for problem in list_problems(data)]


def objects(data: DataSet) -> list[Any]:
    return [item for source in data.sources.values() for record in source.records for item in record.objects]


def yolo(root: Path, *rows: str, names: str = "names: [cat, dog]", classes: str = "", encoding: str = "utf-8") -> Path:
    pictures(root, *(f"images/p{number}.jpg" for number in range(IMAGES)))
    (root / "labels").mkdir()
    for number in range(IMAGES):
        (root / "labels" / f"p{number}.txt").write_bytes("\r\n".join(rows).encode(encoding))
    if classes:
        (root / "classes.txt").write_text(classes)
    else:
        (root / "data.yaml").write_text(f"train: images\n{names}\n")
    return root


def labelme(root: Path, *shapes: dict[str, Any], **fields: Any) -> Path:
    pictures(root, *(f"p{number}.jpg" for number in range(IMAGES)))
    for number in range(IMAGES):
        size = {"imagePath": f"p{number}.jpg", "imageHeight": 30, "imageWidth": 40}
        (root / f"p{number}.json").write_text(json.dumps({"version": "5.4", "shapes": shapes, **size, **fields}))
    return root


def label_studio(root: Path, *results: dict[str, Any], **fields: Any) -> Path:
    pictures(root, *(f"p{number}.jpg" for number in range(IMAGES)))
    tasks = [
        {"data": {"image": f"/data/upload/1/abcdef12-p{n}.jpg"}, "annotations": [{"result": results}], **fields}
        for n in range(IMAGES)
    ]
    (root / "export.json").write_text(json.dumps(tasks))
    return root


def cvat(root: Path, shapes: str) -> Path:
    pictures(root, *(f"p{number}.jpg" for number in range(IMAGES)))
    images = "".join(f'<image id="{n}" name="p{n}.jpg" width="40" height="30">{shapes}</image>' for n in range(IMAGES))
    (root / "annotations.xml").write_text(f"<annotations><version>1.1</version>{images}</annotations>")
    return root


def test_yolo_with_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    data, _ = opened(yolo(tmp_path, BOX, "", POLYGON, encoding="utf-8-sig"))
    assert [item.mask for item in objects(data)] == [ABSENT, PRESENT] * IMAGES


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [no, yes]", ("no", "yes")),
        ("names: {0: on, 1: 1e3}", ("on", "1e3")),
        ("names: ['007', 2.50]", ("007", "2.50")),
    ],
)
def test_yolo_names_are_text(tmp_path: Path, names: str, expected: tuple[str, ...]) -> None:
    data, _ = opened(yolo(tmp_path, BOX, POLYGON, names=names))
    assert data.train.class_names[1:] == expected


def test_an_empty_line_among_yolo_names_keeps_the_indices(tmp_path: Path) -> None:
    data, _ = opened(yolo(tmp_path, BOX, "2 0.5 0.5 0.2 0.2", classes="cat\n\ndog\n\n"))
    assert {data.train.class_names[item.label] for item in objects(data)} == {"cat", "dog"}


def test_oriented_boxes_are_named(tmp_path: Path) -> None:
    _, texts = opened(yolo(tmp_path, "0 0.1 0.2 0.3 0.1 0.4 0.3 0.2 0.4"))
    assert any("5 polygons have four points, are they oriented boxes" in text for text in texts)


def test_a_row_that_is_not_finite_is_not_taken_for_pixels(tmp_path: Path) -> None:
    _, texts = opened(yolo(tmp_path, "0 nan 0.5 0.1 0.1", BOX))
    assert sum("holds a number that is not finite" in text for text in texts) == IMAGES


def test_repeated_labels_are_counted_in_every_format(tmp_path: Path) -> None:
    for path in (
        yolo(tmp_path / "yolo", BOX, BOX),
        labelme(tmp_path / "labelme", TRIANGLE, TRIANGLE),
        cvat(tmp_path / "cvat", CVAT_BOX * 2),
    ):
        _, texts = opened(path)
        assert any("split 'train': 4 labels have the class and the box of another" in text for text in texts), path
    rows = [annotation(n, image=1 + n % 3) for n in range(1, 7)]
    _, texts = opened(make_coco(tmp_path / "coco", coco_content(rows, num_images=3), "labels.json", "images"))
    assert any("labels have the class and the box of another label" in text for text in texts)


def test_shapes_of_one_group_are_counted(tmp_path: Path) -> None:
    second = TRIANGLE | {"points": [[20, 20], [30, 20], [25, 28]]}
    data, texts = opened(labelme(tmp_path / "a", TRIANGLE | {"group_id": 0}, second | {"group_id": 0}))
    assert len(objects(data)) == IMAGES
    assert any(f"groups: {IMAGES} shapes belong to the object of another shape" in text for text in texts)
    data, texts = opened(labelme(tmp_path / "b", TRIANGLE, second))
    assert (len(objects(data)), [text for text in texts if "groups" in text]) == (2 * IMAGES, [])


def test_what_is_not_used_is_one_message(tmp_path: Path) -> None:
    point = {"label": "cat", "points": [[3, 4]], "shape_type": "point"}
    _, texts = opened(labelme(tmp_path, TRIANGLE, point))
    assert [text for text in texts if "not used, only boxes and masks" in text] == [
        f"warning: {tmp_path}: shapes: {IMAGES} point not used, only boxes and masks"
    ]


def test_a_coco_file_beside_labelme_files_is_a_second_annotation_file(tmp_path: Path) -> None:
    labelme(tmp_path, TRIANGLE)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text(json.dumps(coco_content([annotation(1)])))
    data, texts = opened(tmp_path)
    assert (data.format, len(objects(data))) == ("labelme", IMAGES)
    assert any(text.startswith("unused") and "all.json: 2 images with 1 labels" in text for text in texts)


def test_turned_images_and_predictions_of_label_studio(tmp_path: Path) -> None:
    data, texts = opened(label_studio(tmp_path / "turned", RECTANGLE | {"image_rotation": 90}))
    assert objects(data) == []
    assert sum("is drawn on an image turned by 90 degrees" in text for text in texts) == IMAGES
    data, texts = opened(label_studio(tmp_path / "predicted", predictions=[{"result": [RECTANGLE]}]))
    assert any(f"{IMAGES} predictions of a model not used" in text for text in texts)
    data, _ = opened(label_studio(tmp_path / "plain", RECTANGLE))
    assert objects(data)[0].box == pytest.approx((4, 3, 12, 9))


@pytest.mark.parametrize(
    ("shape", "state"),
    [
        ('<polygon label="cat" points="1,2;30,4;10,20;"/>', PRESENT),
        ('<polygon label="cat" points="1,2;3,4"/>', INVALID),
        (CVAT_BOX.replace("/>", "><attribute name='a'>b</attribute></box>"), ABSENT),
    ],
)
def test_cvat_shapes(tmp_path: Path, shape: str, state: str) -> None:
    data, _ = opened(cvat(tmp_path, shape))
    assert {item.mask for item in objects(data)} == {state}


def test_voc_annotations_in_capitals(tmp_path: Path) -> None:
    ids = [f"i{number}" for number in range(IMAGES)]
    make_voc(
        tmp_path, {key: [VocObject("cat", (6, 6, 15, 15))] for key in ids}, ids, {"train": ids[:3], "val": ids[3:]}
    )
    for path in (tmp_path / "Annotations").iterdir():
        path.rename(path.with_suffix(".XML"))
    data, texts = opened(tmp_path)
    assert [item.mask for item in objects(data)] == [PRESENT] * IMAGES
    assert not [text for text in texts if text.startswith("unused")]


@pytest.mark.parametrize(
    "name", ["/elsewhere/data/{}", "C:\\data\\{}", "./{}", "images/../images/{}", "file:///data/{}", "a%20b/{}"]
)
def test_coco_names_of_another_machine(tmp_path: Path, name: str) -> None:
    content = coco_content([annotation(n, image=n, segmentation=square_polygon()) for n in (1, 2, 3)], num_images=3)
    make_coco(tmp_path, content, "labels.json", "images")
    for image in content["images"]:
        image["file_name"] = name.format(image["file_name"])
    (tmp_path / "labels.json").write_text(json.dumps(content))
    data, _ = opened(tmp_path / "labels.json")
    assert [item.mask for item in objects(data)] == [PRESENT] * 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_coco_files_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    content = coco_content([annotation(n, image=n) for n in (1, 2, 3)], num_images=3)
    file = make_coco(tmp_path, content, "labels.json", "images")
    file.write_bytes(json.dumps(content).encode(encoding))
    assert len(objects(opened(file)[0])) == 3


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """Paths of another machine: the end of the path decides, and where it cannot, no image is guessed."""
    content = coco_content([annotation(n, image=n) for n in (1, 2, 3)], num_images=3)
    pictures(tmp_path, "day1/a.jpg", "day2/a.jpg", "day3/a.jpg")
    for image, day in zip(content["images"], ("day1", "day2", "day3"), strict=True):
        image["file_name"] = f"/elsewhere/photos/{day}/a.jpg"
    (tmp_path / "labels.json").write_text(json.dumps(content))
    data = open_dataset(tmp_path / "labels.json")
    paths = {record.image_id: record.path for source in data.sources.values() for record in source.records}
    assert paths == {str(n): tmp_path / f"day{n}" / "a.jpg" for n in (1, 2, 3)}
    content["images"][0]["file_name"] = "/elsewhere/photos/a.jpg"
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="is absolute, expected one relative to the image folder"):
        open_dataset(tmp_path / "labels.json")
