"""labelme folders: rectangles are boxes, polygons, circles and masks are masks, everything else is counted."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shape_builders import ABSENT, INVALID, PRESENT, TRIANGLE, iou, mask_of, messages, pictures, source_of, states

from dasnet_lightning.data.sources.labelme import find_labelme
from dasnet_lightning.data.sources.shape_data import build_sources
from dasnet_lightning.errors import DataError


def shape(label: str, points: list[list[float]], kind: str = "polygon", **fields: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **fields}


def write_labelme(root: Path, name: str, *shapes: Any, image: str | None = None, **fields: Any) -> Path:
    """The JSON `name`; its picture is written too unless `image` names one."""
    if image is None:
        image = f"{Path(name).stem}.jpg"
        pictures((root / name).parent, image)
    size = {"imageHeight": 30, "imageWidth": 40}
    value = {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": image, "imageData": None, **size}
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps({**value, **fields}))
    return root / name


def encode_mask(mask: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_every_shape_becomes_what_it_is(tmp_path: Path) -> None:
    mask = np.tri(8, 6, dtype=bool)
    file = write_labelme(
        tmp_path,
        "a.json",
        shape("cat", TRIANGLE),
        shape("dog", [[30, 20], [10, 5]], "rectangle"),
        shape("cat", [[20, 15], [20, 25]], "circle"),
        shape("cat", [[3, 4], [8, 11]], "mask", mask=encode_mask(mask)),
        shape("cat", [[3, 4]], "point"),
        shape("cat", [[3, 4], [5, 5]], "line"),
        shape("cat", [[3, 4], [5, 5]], "line"),
    )
    source = source_of(find_labelme(tmp_path))
    record = source.records[0]
    assert source.class_names == ("background", "cat", "dog")
    assert states(source) == [[PRESENT, ABSENT, PRESENT, PRESENT]]
    assert [item.box for item in record.objects[:2]] == [(5, 4, 25, 24), (10, 5, 30, 20)]
    assert record.objects[2].box == pytest.approx((10, 5, 30, 25), abs=0.1)
    y, x = np.mgrid[:30, :40] + 0.5
    assert iou(mask_of(source, record, 2), (x - 20) ** 2 + (y - 15) ** 2 <= 100) > 0.98
    expected = np.zeros((30, 40), bool)
    expected[4:12, 3:9] = mask
    assert np.array_equal(mask_of(source, record, 3), expected)
    assert f"{file}: shapes: 2 line, 1 point not used, only boxes and masks" in messages(source)


def test_shapes_of_one_group_are_one_object(tmp_path: Path) -> None:
    second = [[30.0, 20.0], [38.0, 20.0], [34.0, 28.0]]
    write_labelme(tmp_path, "a.json", shape("cat", TRIANGLE, group_id=1), shape("cat", second, group_id=1))
    source = source_of(find_labelme(tmp_path))
    (item,) = source.records[0].objects
    assert item.box == (5, 4, 38, 28)
    mask = mask_of(source, source.records[0], 0)
    assert mask[10, 15]
    assert mask[22, 34]


def test_the_image_is_found_by_path_by_stem_or_by_name(tmp_path: Path) -> None:
    pictures(tmp_path, "images/a.jpg", "json/b.png", "images/sub/c.jpg", "images/d e.jpg")
    write_labelme(tmp_path, "json/a.json", shape("cat", TRIANGLE), image="..\\images\\a.jpg")
    write_labelme(tmp_path, "json/b.json", shape("cat", TRIANGLE), image="C:\\lost\\other.jpg")
    write_labelme(tmp_path, "json/c.json", shape("cat", TRIANGLE), image="/another/machine/c.jpg")
    write_labelme(tmp_path, "json/d.json", shape("cat", TRIANGLE), image="d e.jpg", imageHeight=None)
    source = source_of(find_labelme(tmp_path))
    assert [record.path.name for record in source.records] == ["a.jpg", "b.png", "c.jpg", "d e.jpg"]
    assert {record.size for record in source.records} == {(30, 40)}


def test_missing_and_unlabeled_images_are_named(tmp_path: Path) -> None:
    write_labelme(tmp_path, "a.json", shape("cat", TRIANGLE))
    file = write_labelme(tmp_path, "b.json", shape("cat", TRIANGLE), image="b.jpg")
    pictures(tmp_path, "z.jpg")
    with pytest.raises(DataError, match=r"b\.json: image 'b\.jpg': the image file does not exist"):
        source_of(find_labelme(tmp_path))
    data = find_labelme(tmp_path)
    source = source_of(data, allow_missing=True)
    assert len(source.records) == 1
    assert any(
        text.startswith(f"{file}: object b/0 (image 'b.jpg', class 'cat'): its image") for text in messages(source)
    )
    assert data is not None
    assert [problem.message for problem in data.problems] == [
        "1 of 2 have no label file and are not used, the first is 'z.jpg'"
    ]


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (shape("", TRIANGLE), "has no class name"),
        (shape("cat", []), "'points' is not a list of x, y pairs"),
        (shape("cat", [[1, 2], [3]]), "'points' is not a list"),  # type: ignore[list-item]
        (shape("cat", [[1, 2], [3, 4], [5, 6]], "circle"), "the circle has 3 points, expected 2"),
        (shape("cat", [[1, 2], [3, 4]], "cube"), "unknown shape type 'cube'"),
        (shape("cat", [[5, 5], [5, 9]], "rectangle"), "zero width"),
        ("text", "is not a table of shape values"),
    ],
)
def test_a_shape_that_cannot_be_used_is_named(tmp_path: Path, item: Any, text: str) -> None:
    write_labelme(tmp_path, "a.json", shape("cat", TRIANGLE), item)
    with pytest.raises(DataError, match=rf"a\.json: object a/1 \(image 'a\.jpg'.*{text}"):
        source_of(find_labelme(tmp_path))
    assert states(source_of(find_labelme(tmp_path), fix="drop")) == [[PRESENT]]


def test_damaged_masks_keep_their_boxes(tmp_path: Path) -> None:
    points: list[list[float]] = [[3, 4], [8, 11]]
    write_labelme(
        tmp_path,
        "a.json",
        shape("cat", points, "mask", mask="no picture"),
        shape("cat", points, "mask", mask=encode_mask(np.ones((8, 7), bool))),
        shape("cat", points, "mask", mask=encode_mask(np.zeros((8, 6), bool))),
        shape("cat", [[1, 1], [9, 9]]),
    )
    source = source_of(find_labelme(tmp_path))
    assert states(source) == [[INVALID] * 4]
    reasons = [item.reason for item in source.records[0].objects]
    assert reasons == ["the mask is not a PNG in base64", "the mask has 7x8 pixels, its points span 6x8",
                       "the mask is empty", "polygon 1 of 1 has fewer than three distinct points"]  # fmt: skip


def test_folders_named_like_splits_are_splits(tmp_path: Path) -> None:
    for name in ("Train/a", "valid/b", "test/c"):
        write_labelme(tmp_path, f"{name}.json", shape("cat", TRIANGLE))
    data = find_labelme(tmp_path)
    assert data is not None
    train, val, problems = build_sources(data)
    assert val is not None
    assert [record.image_id for record in (*train.records, *val.records)] == ["Train/a", "valid/b"]
    assert "split 'test': 1 images" in str(problems[-1])


def test_other_files_are_not_labelme(tmp_path: Path) -> None:
    assert find_labelme(tmp_path) is None
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert find_labelme(tmp_path) is None


def test_image_data_before_the_shapes_does_not_hide_them(tmp_path: Path) -> None:
    write_labelme(tmp_path, "a.json", shape("cat", TRIANGLE))
    value = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({"imageData": "A" * 10_000, **value, "x": 1}))
    (tmp_path / "b.json").write_text('{"version": "1"}')
    source = source_of(find_labelme(tmp_path))
    assert len(source.records) == 1
    assert any("b.json: file: is not a labelme file" in text for text in messages(source))
