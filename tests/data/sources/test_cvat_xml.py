"""CVAT XML 1.1 for images: which shapes are boxes, which are masks, and how the rest is reported."""

from pathlib import Path

import numpy as np
import pytest
from shape_builders import ABSENT, INVALID, PRESENT, iou, mask_of, messages, pictures, source_of, states

from dasnet_lightning.data.sources.cvat_xml import find_cvat
from dasnet_lightning.data.sources.shape_data import build_sources
from dasnet_lightning.errors import DataError

BOX = '<box label="dog" xtl="10.0" ytl="5.5" xbr="30" ybr="20" occluded="0" z_order="0"><attribute name="a">1</attribute></box>'
POLYGON = '<polygon label="cat" points="5.0,4.0;25.0,6.0;15.0,24.0" z_order="1"></polygon>'
LABELS = "<meta><task><labels><label><name>cat</name></label><label><name>dog</name></label></labels></task></meta>"


def image(name: str, shapes: str = "", **fields: object) -> str:
    extra = " ".join(f'{key}="{value}"' for key, value in fields.items())
    return f'<image id="0" name="{name}" width="40" height="30" {extra}>{shapes}</image>'


def write_cvat(root: Path, *images: str, name: str = "annotations.xml", meta: str = LABELS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{"".join(images)}</annotations>'
    )
    return root / name


def test_every_shape_becomes_what_it_is(tmp_path: Path) -> None:
    pictures(tmp_path, "images/a.jpg")
    mask = '<mask label="cat" rle="1, 2, 3" left="7" top="8" width="3" height="2"/>'
    oval = '<ellipse label="cat" cx="20" cy="15" rx="10" ry="5" rotation="90"/>'
    others = (
        '<polyline label="cat" points="1,1;2,2"/><points label="cat" points="1,1"/><tag label="cat"/><tag label="dog"/>'
    )
    file = write_cvat(tmp_path, image("a.jpg", BOX + POLYGON + mask + oval + others))
    source = source_of(find_cvat(tmp_path))
    record = source.records[0]
    assert (record.image_id, record.size) == ("a", (30, 40))
    assert source.class_names == ("background", "cat", "dog")
    assert states(source) == [[ABSENT, PRESENT, PRESENT, PRESENT]]
    assert [item.box for item in record.objects[:3]] == [(10, 5.5, 30, 20), (5, 4, 25, 24), (8, 8, 10, 9)]
    expected = np.zeros((30, 40), bool)
    expected[8, 8:10] = True
    assert np.array_equal(mask_of(source, record, 2), expected)
    y, x = np.mgrid[:30, :40] + 0.5
    assert iou(mask_of(source, record, 3), ((x - 20) / 5) ** 2 + ((y - 15) / 10) ** 2 <= 1) > 0.97
    text = "image 'a.jpg': 1 points, 1 polyline, 2 tag not used, only boxes and masks"
    assert messages(source) == [f"{file}: {text}"]


def test_a_group_is_one_object_and_a_rotated_box_its_surrounding_box(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    parts = POLYGON.replace("z_order", 'group_id="3" z_order') + (
        '<mask label="cat" rle="0,4" left="30" top="20" width="2" height="2" group_id="3"/>'
    )
    turned = '<box label="dog" xtl="10" ytl="10" xbr="30" ybr="14" rotation="90"/>'
    write_cvat(tmp_path, image("a.jpg", parts + turned))
    source = source_of(find_cvat(tmp_path))
    group, box = source.records[0].objects
    assert group.box == (5, 4, 32, 24)
    mask = mask_of(source, source.records[0], 0)
    assert mask[20:22, 30:32].all()
    assert mask[10, 15]
    assert box.box == pytest.approx((18, 2, 22, 22))
    assert box.mask is ABSENT


@pytest.mark.parametrize("by", ["subset", "task", "folder", "file"])
def test_subsets_tasks_and_folders_are_splits(tmp_path: Path, by: str) -> None:
    pictures(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    shapes = {"a": "Train", "b": "Validation", "c": "test"}
    if by == "subset":
        write_cvat(tmp_path, *(image(f"{key}.jpg", BOX, subset=name) for key, name in shapes.items()))
    elif by == "task":
        tasks = "".join(f"<task><id>{key}</id><name>{name}</name></task>" for key, name in shapes.items())
        images = [image(f"{key}.jpg", BOX, task_id=key) for key in shapes]
        write_cvat(tmp_path, *images, meta=f"<meta><project><tasks>{tasks}</tasks></project></meta>")
    else:
        for key, name in shapes.items():
            folder, file = (name, "annotations.xml") if by == "folder" else ("", f"{name}.xml")
            write_cvat(tmp_path / folder, image(f"{key}.jpg", BOX), name=file)
    data = find_cvat(tmp_path)
    assert data is not None
    train, val, problems = build_sources(data)
    assert val is not None
    assert [record.image_id for record in (*train.records, *val.records)] == ["a", "b"]
    assert any("split 'test': 1 images" in str(problem) for problem in problems)
    assert train.class_names == val.class_names


def test_images_without_a_file_and_files_without_an_entry(tmp_path: Path) -> None:
    pictures(tmp_path, "images/a.jpg", "images/b.jpg")
    write_cvat(tmp_path, image("a.jpg", BOX), image("c.jpg", BOX))
    with pytest.raises(DataError, match=r"annotations\.xml: image 'c\.jpg': the image file does not exist"):
        source_of(find_cvat(tmp_path))
    data = find_cvat(tmp_path / "annotations.xml")
    source = source_of(data, allow_missing=True)
    assert [record.image_id for record in source.records] == ["a"]
    assert data is not None
    assert "1 of 2 are in no XML file" in str(data.problems[0])
    write_cvat(tmp_path, image("c.jpg", BOX))
    with pytest.raises(DataError, match=r"image 'c\.jpg': the image file does not exist"):
        source_of(find_cvat(tmp_path), allow_missing=True)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ('<box label="dog" xtl="1" ytl="2" xbr="x" ybr="5"/>', "the box has xtl='1', ytl='2', xbr='x'"),
        ('<box label="dog" xtl="1" ytl="2" xbr="1" ybr="5"/>', "zero width"),
        ('<box xtl="1" ytl="2" xbr="4" ybr="5"/>', "has no class name"),
        ('<polygon label="cat" points="1;2"/>', "'points' is '1;2', expected x,y"),
        ('<mask label="cat" rle="1" left="0" top="0" width="1"/>', "height='None', expected numbers"),
    ],
)
def test_a_shape_that_cannot_be_used_is_named(tmp_path: Path, shape: str, text: str) -> None:
    pictures(tmp_path, "a.jpg")
    write_cvat(tmp_path, image("a.jpg", POLYGON + shape))
    with pytest.raises(DataError, match=rf"annotations\.xml: object a/1 \(image 'a\.jpg'.*{text}"):
        source_of(find_cvat(tmp_path))
    assert states(source_of(find_cvat(tmp_path), fix="drop")) == [[PRESENT]]


def test_damaged_masks_keep_their_window_as_box(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    window = 'left="3" top="4" width="2" height="3"/>'
    rles = ("1,2", "6", "1,x", "7,-1")
    write_cvat(tmp_path, image("a.jpg", "".join(f'<mask label="cat" rle="{rle}" {window}' for rle in rles)))
    source = source_of(find_cvat(tmp_path))
    assert states(source) == [[INVALID] * 4]
    assert {item.box for item in source.records[0].objects} == {(3, 4, 5, 7)}


def test_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    file = write_cvat(tmp_path, '<track id="0"/>')
    with pytest.raises(DataError, match="annotates a video, export 'CVAT for images"):
        find_cvat(file)
    write_cvat(tmp_path, image("a.jpg"), image("a.jpg"), '<image name="b.jpg" width="x" height="3"/>')
    with pytest.raises(
        DataError, match=r"image 'a\.jpg': occurs twice.*\n.*image 'b\.jpg': has height '3' and width 'x'"
    ):
        find_cvat(file)
    file.write_text('<!DOCTYPE x [<!ENTITY a "b">]><annotations></annotations>')
    with pytest.raises(DataError, match="declares a DOCTYPE"):
        find_cvat(file)
    file.write_text("<annotations><image>")
    with pytest.raises(DataError, match="is not valid XML"):
        find_cvat(file)
    file.write_text("<annotation></annotation>")
    assert find_cvat(file) is None
