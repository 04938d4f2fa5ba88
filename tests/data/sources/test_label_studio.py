"""Label Studio exports: shapes in percent, brush masks bit by bit, and images by the names that exports give them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shape_builders import ABSENT, PRESENT, TRIANGLE, iou, mask_of, messages, pictures, source_of, states

from dasnet_lightning.data.sources.label_studio import find_label_studio
from dasnet_lightning.data.sources.label_studio_rle import decode_brush
from dasnet_lightning.data.sources.shape_data import build_sources
from dasnet_lightning.errors import DataError

WIDTHS = (3, 4, 8, 16)
RECTANGLE = {"x": 25, "y": 20, "width": 50, "height": 40, "rotation": 0}
POLYGON = {"points": [[x / 0.4, y / 0.3] for x, y in TRIANGLE]}


def encode_brush(mask: np.ndarray, literals: bool = False) -> list[int]:
    """The format written from its description: runs of RGBA bytes, or single values throughout."""
    values = np.repeat(mask.astype(np.uint8) * 255, 4, axis=None).ravel()
    edges = np.flatnonzero(np.diff(values)) + 1
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in WIDTHS)
    for start, stop in zip([0, *edges], [*edges, len(values)], strict=True):
        for begin in range(start, stop, 2**16):
            length = min(stop - begin, 2**16)
            choice = next(place for place, width in enumerate(WIDTHS) if length <= 2**width)
            word = f"{values[begin]:08b}"
            bits += f"{int(not literals)}{choice:02b}{length - 1:0{WIDTHS[choice]}b}" + word * (
                length if literals else 1
            )
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def region(kind: str, label: str | None, value: dict[str, Any], key: str = "r") -> dict[str, Any]:
    labels = {} if label is None else {kind: [label]}
    return {"id": key, "type": kind, "original_width": 40, "original_height": 30, "value": {**value, **labels}}


def task(number: int, image: str, *regions: Any, **fields: Any) -> dict[str, Any]:
    return {"id": number, "data": {"image": image}, "annotations": [{"id": 1, "result": list(regions)}], **fields}


def write_export(root: Path, *tasks: Any, name: str = "project.json") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(list(tasks)))
    return root / name


@pytest.mark.parametrize("literals", [False, True])
def test_brush_masks_are_decoded_exactly(literals: bool) -> None:
    rng = np.random.default_rng(0)
    for size in ((1, 1), (30, 40), (300, 500)):
        mask = rng.random(size) < 0.5 if size[0] < 100 else np.tri(*size, dtype=bool)
        if literals and size[0] > 100:
            continue
        assert np.array_equal(decode_brush(encode_brush(mask, literals), size), mask)


def test_damaged_brush_masks_are_refused() -> None:
    rle = encode_brush(np.tri(30, 40, dtype=bool))
    for bad in (rle[:-10], rle[:3], [], "text", [256], [*rle[:8], 255, 255, 255]):
        with pytest.raises(ValueError, match="run lengths"):
            decode_brush(bad, (30, 40))
    with pytest.raises(ValueError, match="hold 4800 values, expected 4960"):
        decode_brush(rle, (31, 40))


def test_every_shape_becomes_what_it_is(tmp_path: Path) -> None:
    pictures(tmp_path, "images/1a2b3c4d-my picture.jpg")
    mask = np.zeros((30, 40), bool)
    mask[5:9, 3:20] = True
    regions = [
        region("rectanglelabels", "dog", RECTANGLE, "1"),
        region("polygonlabels", "cat", POLYGON, "2"),
        region("brushlabels", "cat", {"format": "rle", "rle": encode_brush(mask)}, "3"),
        region("ellipselabels", "cat", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 20, "rotation": 0}, "4"),
        region("keypointlabels", "cat", {"x": 5, "y": 5, "width": 1}, "5"),
        {"id": "6", "type": "choices", "value": {"choices": ["good"]}},
        region("rectangle", None, RECTANGLE, "7"),
        region("labels", "dog", RECTANGLE, "7"),
    ]
    file = write_export(tmp_path, task(7, "/data/upload/1/1a2b3c4d-my%20picture.jpg", *regions))
    source = source_of(find_label_studio(tmp_path))
    record = source.records[0]
    assert source.class_names == ("background", "cat", "dog")
    assert states(source) == [[ABSENT, PRESENT, PRESENT, PRESENT, ABSENT]]
    assert record.objects[0].box == record.objects[4].box == (10, 6, 30, 18)
    assert record.objects[1].box == pytest.approx((5, 4, 25, 24))
    assert record.objects[2].box == (3, 5, 20, 9)
    assert np.array_equal(mask_of(source, record, 2), mask)
    y, x = np.mgrid[:30, :40] + 0.5
    assert iou(mask_of(source, record, 3), ((x - 20) / 10) ** 2 + ((y - 15) / 6) ** 2 <= 1) > 0.97
    assert messages(source) == [f"{file}: task 7: 1 choices, 1 keypointlabels not used, only boxes and masks"]


def test_a_rotated_rectangle_is_its_surrounding_box(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    turned = {"x": 50, "y": 50, "width": 25, "height": 20, "rotation": 90}
    write_export(tmp_path, task(1, "a.jpg", region("rectanglelabels", "dog", turned)))
    (item,) = source_of(find_label_studio(tmp_path)).records[0].objects
    assert item.box == pytest.approx((14, 15, 20, 25))


@pytest.mark.parametrize(
    "written",
    [
        "a b.jpg",
        "/data/upload/3/0123abcd-a%20b.jpg",
        "https://example.org/bucket/a%20b.jpg?token=x",
        "/data/local-files/?d=images%5Ca%20b.jpg",
        "s3://bucket/folder/a b.jpg",
        "..\\..\\media\\upload\\4\\a b.jpg",
    ],
)
def test_images_are_found_by_the_names_that_exports_give_them(tmp_path: Path, written: str) -> None:
    pictures(tmp_path, "images/a b.jpg")
    write_export(tmp_path, task(1, written, region("rectanglelabels", "dog", RECTANGLE)))
    assert source_of(find_label_studio(tmp_path)).records[0].path == tmp_path / "images" / "a b.jpg"


def test_a_name_that_two_images_have_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "one/a.jpg", "two/a.jpg")
    write_export(tmp_path, task(1, "/data/upload/1/a.jpg", region("rectanglelabels", "dog", RECTANGLE)))
    with pytest.raises(DataError, match=r"could be one/a\.jpg and two/a\.jpg"):
        source_of(find_label_studio(tmp_path))


def test_minimal_exports_are_read(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    size = {"original_width": 40, "original_height": 30}
    rows = [{**RECTANGLE, **size, "rectanglelabels": ["dog"]}, {**POLYGON, **size, "polygonlabels": ["cat"]}]
    write_export(tmp_path, {"image": "a.jpg", "id": 1, "label": rows, "annotator": 2}, {"image": "b.jpg", "id": 2})
    source = source_of(find_label_studio(tmp_path))
    assert states(source) == [[ABSENT, PRESENT], []]
    assert source.records[1].size == (30, 40)


def test_one_annotation_of_a_task_counts(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    box, other = region("rectanglelabels", "dog", RECTANGLE), region("polygonlabels", "cat", POLYGON)
    annotations = [
        {"result": [box], "was_cancelled": True},
        {"result": [box]},
        {"result": [other], "ground_truth": True},
    ]
    write_export(
        tmp_path, task(1, "a.jpg", annotations=annotations), task(2, "b.jpg", annotations=[]), task(3, "a.jpg")
    )
    data = find_label_studio(tmp_path)
    source = source_of(data)
    assert states(source) == [[PRESENT], []]
    assert [text.split(": ", 1)[1] for text in messages(source)] == [
        "task 1: 1 more annotations of the same image are not used",
        "task 3: its image 'a.jpg' is described twice, keep one of the two",
    ]
    assert data is not None
    assert "1 of 3 are in no task" in str(data.problems[0])


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (region("rectanglelabels", None, RECTANGLE), "has no class name"),
        (region("rectanglelabels", "dog", {"x": 1, "y": 1, "width": 5}), "has no 'height'"),
        (region("rectanglelabels", "dog", {**RECTANGLE, "width": "x"}), "cannot be read"),
        (region("rectanglelabels", "dog", {**RECTANGLE, "width": 0}), "zero width"),
        (region("polygonlabels", "dog", {"points": [[1], [2]]}), "cannot be read"),
        (region("brushlabels", "dog", {"rle": [1, 2, 3]}), "the run lengths are cut short"),
        (
            region("rectanglelabels", "dog", {**RECTANGLE, "rectanglelabels": ["a", "b"]}),
            "has the labels a, b, expected one",
        ),
    ],
)
def test_a_region_that_cannot_be_used_is_named(tmp_path: Path, item: dict[str, Any], text: str) -> None:
    pictures(tmp_path, "a.jpg")
    if "expected one" in text:
        item["value"]["rectanglelabels"] = ["a", "b"]
    good = region("polygonlabels", "cat", POLYGON, "good")
    write_export(tmp_path, task(1, "a.jpg", good, item))
    with pytest.raises(DataError, match=rf"project\.json: object a/1 \(image 'a\.jpg'.*{text}"):
        source_of(find_label_studio(tmp_path))
    assert states(source_of(find_label_studio(tmp_path), fix="drop")) == [[PRESENT]]


def test_splits_by_file_and_faulty_files(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    write_export(tmp_path, task(1, "a.jpg", region("polygonlabels", "cat", POLYGON)), name="train.json")
    write_export(tmp_path, task(1, "b.jpg"), name="val.json")
    data = find_label_studio(tmp_path)
    assert data is not None
    train, val, _ = build_sources(data)
    assert val is not None
    assert [record.image_id for record in (*train.records, *val.records)] == ["a", "b"]
    write_export(tmp_path, task(1, "", region("polygonlabels", "cat", POLYGON)), task(2, "b.jpg"), name="val.json")
    data = find_label_studio(tmp_path)
    assert data is not None
    assert "task 1: names no image" in str(data.splits["val"].problems[0])
    (tmp_path / "val.json").write_text('["polygonlabels"]')
    with pytest.raises(DataError, match="is not a list of tasks"):
        find_label_studio(tmp_path)
