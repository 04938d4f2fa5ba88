"""Writing data sets: what was read from one format is written in another and read back as the same."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from data_builders import VocObject, annotation, coco_content, make_coco, make_voc, square_polygon
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from pycocotools import mask as coco_mask

from dasnet_lightning.cli.convert import FORMATS
from dasnet_lightning.cli.main import main
from dasnet_lightning.data.records import MaskState, Source
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.data.writers import WRITERS
from dasnet_lightning.data.writers.base import read_labels
from dasnet_lightning.data.writers.coco import CocoEditor
from dasnet_lightning.data.writers.convert import convert_dataset
from dasnet_lightning.data.writers.outlines import join_rings, trace_mask
from dasnet_lightning.data.writers.voc import replace_labels
from dasnet_lightning.errors import ConfigError, DataError
from dasnet_lightning.rle import encode_mask


def ring_mask() -> dict[str, object]:
    """Run lengths of a square with a hole in it, at (20, 8) of 12 pixels."""
    mask = np.zeros((30, 40), np.uint8)
    mask[8:20, 20:32] = 1
    mask[12:16, 24:28] = 0
    runs, value = [], 0
    for pixel in mask.T.ravel().tolist():
        if pixel == value and runs:
            runs[-1] += 1
        elif not runs and pixel == 0:
            runs.append(1)
        else:
            runs.append(1)
            value = pixel
    return {"size": [30, 40], "counts": runs}


def mixed_rows() -> list[dict[str, object]]:
    """Polygons, two parts, run lengths with a hole, box only in three spellings, and a crowd, of two images."""
    parts = [[1, 1, 9, 1, 9, 6, 1, 6], [12, 3, 17, 3, 17, 9.5, 12, 9.5]]
    return [
        annotation(7, 1, 2, bbox=[5.1, 5.123456789012345, 9.8, 9.75], segmentation=square_polygon(), score=0.25),
        annotation(3, 2, 1, bbox=[1, 1, 16, 8.5], segmentation=parts, attributes={"occluded": True}),
        annotation(4, 1, 1, bbox=[20, 8, 12, 12], segmentation=ring_mask(), area=128),
        annotation(11, 1, 1, bbox=[2.5, 17.25, 10.125, 8]),
        annotation(12, 2, 2, bbox=[20, 20, 6, 6], segmentation=[]),
        annotation(13, 2, 2, bbox=[30, 2, 6.5, 6.5], segmentation=None),
        annotation(14, 2, 1, bbox=[28, 15, 10, 10], iscrowd=1),
    ]


def make_mixed(root: Path) -> Path:
    """A COCO data set with both splits and unknown fields everywhere."""
    for split in ("train", "val"):
        content = coco_content(mixed_rows(), categories=((2, "dog"), (1, "cat")))
        content = {"info": {"year": 2026}, **content, "videos": [{"id": 1}]}
        content["images"][0] |= {"license": 4, "date": "ünknown"}
        content["categories"][0] |= {"supercategory": "animal"}
        make_coco(root, content, f"annotations/instances_{split}.json", split)
    return root


def convert(data: DataSet, to: str, out: Path) -> DataSet:
    convert_dataset(data, to, out)
    return open_dataset(out)


def check_same(before: Source, after: Source, box_tolerance: float = 1e-9) -> None:
    """Check that both sources have the same images, boxes, classes and masks, and the same objects without a mask."""
    assert len(after.records) == len(before.records)
    for record, other in zip(before.records, after.records, strict=True):
        assert other.size == record.size
        names = [[source.class_names[item.label] for item in items] for source, items in
                 ((before, record.objects), (after, other.objects))]  # fmt: skip
        assert names[0] == names[1]
        assert (
            np.abs(np.subtract([i.box for i in other.objects], [i.box for i in record.objects])).max() < box_tolerance
        )
        assert [item.mask for item in other.objects] == [item.mask for item in record.objects]
        present = [index for index, item in enumerate(record.objects) if item.mask is MaskState.PRESENT]
        if not present:
            continue
        first, second = before.load_masks(record, present), after.load_masks(other, present)
        assert all(first.valid)
        assert second.valid == first.valid, second.reasons
        for one, two in zip(first.masks, second.masks, strict=True):
            assert (one & two).sum() >= 0.99 * (one | two).sum()


def test_the_command_offers_every_writer() -> None:
    assert set(FORMATS) == set(WRITERS)


def test_coco_to_coco_changes_nothing(tmp_path: Path) -> None:
    root = make_mixed(tmp_path / "in")
    assert main(["convert", str(root), "--to", "coco", "--out", str(tmp_path / "out")]) == 0
    for split in ("train", "val"):
        file = f"annotations/instances_{split}.json"
        assert json.loads((tmp_path / "out" / file).read_text()) == json.loads((root / file).read_text())
        assert list(json.loads((tmp_path / "out" / file).read_text())) == list(json.loads((root / file).read_text()))
        for image in sorted((root / split).iterdir()):
            assert (tmp_path / "out" / split / image.name).read_bytes() == image.read_bytes()


def test_one_file_stays_one_split_and_folders_in_names_stay(tmp_path: Path) -> None:
    content = coco_content([annotation(number, number) for number in range(1, 11)], num_images=10)
    for image in content["images"]:
        image["file_name"] = "deep/er/" + image["file_name"]
    make_coco(tmp_path / "in", content, "annotations/instances_train.json", "train")
    data = open_dataset(tmp_path / "in")
    assert len(data.val.records) == 2
    again = convert(data, "coco", tmp_path / "out")
    assert [r.image_id for r in again.val.records] == [r.image_id for r in data.val.records]
    assert json.loads((tmp_path / "out/annotations/instances_train.json").read_text()) == content
    assert sorted(path.name for path in (tmp_path / "out/annotations").iterdir()) == ["instances_train.json"]


def test_labels_that_were_refused_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_mixed(tmp_path / "in")
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].insert(1, annotation(99, 1, 1, bbox=[5, 5, 0, 3]))
    file.write_text(json.dumps(content))
    arguments = ["convert", str(root), "--to", "coco", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--fix", "drop"]) == 0
    assert "annotation 99" in capsys.readouterr().out
    del content["annotations"][1]
    assert json.loads((tmp_path / "out/annotations/instances_train.json").read_text()) == content


def test_voc_keeps_boxes_masks_flags_and_what_has_no_mask(tmp_path: Path) -> None:
    data = open_dataset(make_mixed(tmp_path / "in"))
    again = convert(data, "voc", tmp_path / "voc")
    assert again.format == "voc"
    for before, after in ((data.train, again.train), (data.val, again.val)):
        check_same(before, after)
        flags = [[item.ignore for item in record.objects] for record in after.records]
        assert flags == [[item.ignore for item in record.objects] for record in before.records]
    back = convert(again, "coco", tmp_path / "coco")
    check_same(again.train, back.train)


def test_voc_s_pixels_of_boxes_without_a_mask_are_void(tmp_path: Path) -> None:
    data = open_dataset(make_mixed(tmp_path / "in"))
    convert_dataset(data, "voc", tmp_path / "voc")
    with Image.open(tmp_path / "voc/SegmentationObject/a1.png") as picture:
        assert picture.mode == "P"
        pixels = np.asarray(picture)
    assert set(np.unique(pixels)) == {0, 1, 2, 255}
    assert (pixels[18:25, 3:12] == 255).all()
    assert not (tmp_path / "voc/SegmentationObject/a3.png").exists()


def test_overlaps_flags_and_void_that_a_format_cannot_hold_are_counted(tmp_path: Path) -> None:
    big = [[2, 2, 30, 2, 30, 25, 2, 25]]
    rows = [annotation(1, bbox=[2, 2, 28, 23], segmentation=big), annotation(2, segmentation=square_polygon())]
    rows += [
        annotation(3, bbox=[2, 2, 5, 5], iscrowd=1),
        annotation(4, bbox=[1, 5, 14, 12], segmentation=square_polygon()),
    ]
    make_coco(tmp_path / "in", coco_content(rows, num_images=9))
    data = open_dataset(tmp_path / "in")
    losses = {to: convert_dataset(data, to, tmp_path / to).losses for to in WRITERS}
    assert losses["coco"] == {}
    assert [count for text, count in losses["voc"].items() if "covered" in text] == [2]
    assert [count for text, count in losses["yolo"].items() if "crowd" in text] == [1]
    assert [count for text, count in losses["yolo"].items() if "extent" in text] == [1]
    assert [count for text, count in losses["labelme"].items() if "extent" in text] == [1]
    voc = make_voc(
        tmp_path / "devkit", {f"{i}": [VocObject("cat", (3, 4, 12, 13))] for i in range(9)}, masked=["1", "2"]
    )
    losses = {to: convert_dataset(open_dataset(voc), to, tmp_path / f"from_voc_{to}").losses for to in WRITERS}
    assert losses["voc"] == {}
    for to in ("coco", "yolo", "labelme"):
        assert [count for text, count in losses[to].items() if "void" in text] == [2]


def test_masks_that_cannot_be_used_become_boxes_and_are_counted(tmp_path: Path) -> None:
    rows = [annotation(1, segmentation=[[1, 2, 3]]), annotation(2, segmentation=square_polygon(25, 15, 8))]
    make_coco(tmp_path / "in", coco_content(rows, num_images=5))
    result = convert_dataset(open_dataset(tmp_path / "in"), "yolo", tmp_path / "out")
    assert [count for text, count in result.losses.items() if "cannot be used" in text] == [2]
    assert [len(line.split()) for line in (tmp_path / "out/labels/train/a1.txt").read_text().splitlines()] == [5, 5]


def test_voc_to_voc_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    objects = [VocObject("cat", (3, 4, 12, 13), 1), VocObject("dog", (20.5, 10, 30, 25))]
    root = make_voc(
        tmp_path / "in",
        {f"2008_{i}": objects for i in range(4)},
        lists={"train": ["2008_0", "2008_1"], "val": ["2008_3"]},
    )
    xml = root / "Annotations/2008_1.xml"
    xml.write_text(xml.read_text().replace("<object>", "<owner>me</owner><object><pose>Left</pose>", 1))
    again = convert(open_dataset(root), "voc", tmp_path / "out")
    check_same(open_dataset(root).train, again.train)
    text = (tmp_path / "out/Annotations/2008_1.xml").read_text()
    assert "<owner>me</owner>" in text
    assert "<pose>Left</pose>" in text
    assert "<xmin>20.5</xmin>" in text
    assert "segmented" not in text


def test_yolo_rows_have_five_numbers_or_a_polygon(tmp_path: Path) -> None:
    data = open_dataset(make_mixed(tmp_path / "in"))
    convert_dataset(data, "yolo", tmp_path / "out")
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert content == {"train": "images/train", "val": "images/val", "nc": 2, "names": ["cat", "dog"]}
    rows = [line.split() for line in (tmp_path / "out/labels/train/a1.txt").read_text().splitlines()]
    assert [row[0] for row in rows] == ["1", "0", "0"]
    assert [len(row) > 5 for row in rows] == [True, True, False]
    assert np.allclose(np.array(rows[0][1:], float).reshape(-1, 2) * (40, 30), np.reshape(square_polygon()[0], (-1, 2)))
    x, y, width, height = np.array(rows[2][1:], float) * (40, 30, 40, 30)
    assert np.allclose([x - width / 2, y - height / 2, width, height], [2.5, 17.25, 10.125, 8])
    assert (tmp_path / "out/labels/train/a2.txt").is_file()


def test_labelme_shapes_are_polygons_and_rectangles(tmp_path: Path) -> None:
    data = open_dataset(make_mixed(tmp_path / "in"))
    convert_dataset(data, "labelme", tmp_path / "out")
    content = json.loads((tmp_path / "out/train/a2.json").read_text())
    assert (tmp_path / "out/train" / content["imagePath"]).is_file()
    assert (content["imageHeight"], content["imageWidth"]) == (30, 40)
    shapes = [(s["label"], s["shape_type"], s["group_id"], s["flags"]) for s in content["shapes"]]
    assert shapes == [
        ("cat", "polygon", 1, {}),
        ("cat", "polygon", 1, {}),
        ("dog", "rectangle", None, {}),
        ("dog", "rectangle", None, {}),
        ("cat", "rectangle", None, {"ignore": True}),
    ]
    assert content["shapes"][2]["points"] == [[20, 20], [26, 26]]


@pytest.mark.parametrize("to", ["yolo", "labelme"])
def test_what_is_written_is_read_back(tmp_path: Path, to: str) -> None:
    try:
        importlib.import_module(f"dasnet_lightning.data.sources.{to}")
    except ModuleNotFoundError:
        pytest.skip(f"{to} is not read yet")
    rows = [row | {"bbox": [5, 5, 10, 10]} if row["id"] == 7 else row for row in mixed_rows()]
    for split in ("train", "val"):
        make_coco(tmp_path / "in", coco_content(rows), f"annotations/instances_{split}.json", split)
    data = open_dataset(tmp_path / "in")
    again = convert(data, to, tmp_path / "out")
    for before, after in ((data.train, again.train), (data.val, again.val)):
        check_same(before, after, box_tolerance=0.51)  # boxes of masks are the extent of their pixels


def test_images_of_one_name_get_two_and_spaces_go(tmp_path: Path) -> None:
    for split in ("train", "val"):
        content = coco_content([annotation(1), annotation(2, 2), annotation(3, 3)], num_images=3)
        for image, name in zip(content["images"], ("x/a.jpg", "y/a.jpg", "b c.jpg"), strict=True):
            image["file_name"] = name
        make_coco(tmp_path / "in", content, f"annotations/instances_{split}.json", split)
    data = open_dataset(tmp_path / "in")
    result = convert_dataset(data, "voc", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out/JPEGImages").iterdir())
    assert names == ["a.jpg", "b_c.jpg", "b_c_2.jpg", "x_a.jpg", "y_a.jpg", "y_a_2.jpg"]
    assert [count for text, count in result.losses.items() if "another name" in text] == [5]
    assert len(open_dataset(tmp_path / "out").val.records) == 3


def test_ids_of_other_formats_are_kept_if_they_are_numbers(tmp_path: Path) -> None:
    for name, ids, expected in (("n", ["7", "12"], [7, 12]), ("s", ["2008_1", "12"], [1, 2])):
        objects = {item: [VocObject("cat", (3, 4, 12, 13))] for item in ids}
        root = make_voc(tmp_path / name, objects, masked=ids, lists={"train": ids, "val": ids})
        convert_dataset(open_dataset(root), "coco", tmp_path / f"{name}_out")
        content = json.loads((tmp_path / f"{name}_out/annotations/instances_train.json").read_text())
        assert [image["id"] for image in content["images"]] == expected
        assert [row["id"] for row in content["annotations"]] == [1, 2]
        assert content["annotations"][0]["bbox"] == [2, 3, 10, 10]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_mixed(tmp_path / "in")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    for out, words in (("full", "is not empty"), ("full/x", "is a file")):
        assert main(["convert", str(data), "--to", "voc", "--out", str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
    with pytest.raises(ConfigError, match="'pascal' is not a format"):
        convert_dataset(open_dataset(data), "pascal", tmp_path / "none")


def test_images_can_be_linked(tmp_path: Path) -> None:
    data = make_mixed(tmp_path / "in")
    out = tmp_path / "out"
    assert main(["convert", str(data), "--to", "yolo", "--out", str(out), "--images", "link"]) == 0
    assert (out / "images/train/a1.jpg").samefile(data / "train/a1.jpg")


def changed_labels(source: Source, index: int, name: str) -> tuple[np.ndarray, object]:
    """The labels of the first image with a new mask for one object."""
    record = source.records[0]
    labels, _ = read_labels(source, record, name)
    mask = np.zeros(record.size, bool)
    x0, y0, x1, y1 = map(int, labels.objects[index].box)
    mask[y0 + 1 : y1, x0 + 1 : x1] = True
    item = replace(labels.objects[index], mask=encode_mask(mask), changed=True, extra={"mask_quality": 0.875})
    objects = (*labels.objects[:index], item, *labels.objects[index + 1 :])
    return mask, replace(labels, objects=objects)


def test_a_coco_file_is_edited_in_place(tmp_path: Path) -> None:
    root = make_mixed(tmp_path / "in")
    file = root / "annotations/instances_train.json"
    before = json.loads(file.read_text())
    mask, labels = changed_labels(open_dataset(root).train, 2, "a1.jpg")
    editor = CocoEditor(file)
    editor.update(labels)
    editor.save()
    editor.save()
    after = json.loads(file.read_text())
    assert json.loads((file.parent / "instances_train.json.previous").read_text()) == before
    (place,) = [place for place, row in enumerate(after["annotations"]) if row != before["annotations"][place]]
    old, new = before["annotations"][place], after["annotations"][place]
    assert {key: new[key] for key in old} == old
    assert new["area"] == mask.sum()
    assert new["mask_quality"] == 0.875
    source = open_dataset(root).train
    assert (source.load_masks(source.records[0], [2]).masks[0] == mask).all()
    stranger = replace(labels, objects=(replace(labels.objects[2], object_id="12345"),))
    with pytest.raises(DataError, match="has no annotation 12345"):
        editor.update(stranger)


def test_a_voc_image_is_edited_in_place(tmp_path: Path) -> None:
    convert_dataset(open_dataset(make_mixed(tmp_path / "in")), "voc", tmp_path / "voc")
    source = open_dataset(tmp_path / "voc").train
    record = source.records[0]
    before = source.load_masks(record, [0, 1]).masks
    xml = (tmp_path / "voc/Annotations/a1.xml").read_bytes()
    mask, labels = changed_labels(source, 2, "a1.jpg")
    replace_labels(tmp_path / "voc", labels)
    source = open_dataset(tmp_path / "voc").train
    assert [item.mask for item in source.records[0].objects] == [MaskState.PRESENT] * 3
    opened = source.load_masks(source.records[0], [0, 1, 2])
    assert opened.valid == (True,) * 3
    assert (opened.masks[:2] == before).all()
    assert (opened.masks[2] == mask).all()
    assert not opened.void.any()
    assert (tmp_path / "voc/Annotations/a1.xml.previous").read_bytes() == xml
    assert (tmp_path / "voc/SegmentationObject/a1.png.previous").is_file()


MASKS = npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24), elements=st.booleans())


@settings(deadline=None, max_examples=150)
@given(MASKS)
def test_traced_outlines_give_the_mask_back(mask: np.ndarray) -> None:
    rings = trace_mask(mask)
    if not mask.any():
        assert rings == []
        return
    for polygons in (rings, [join_rings(rings)]):
        runs = coco_mask.merge(coco_mask.frPyObjects([ring.ravel().tolist() for ring in polygons], *mask.shape))
        assert (coco_mask.decode(runs).astype(bool) == mask).all()


def test_pictures_beside_the_checkout_survive(shared: Path, tmp_path: Path) -> None:
    data = open_dataset(shared / "data" / "voc07_subset")
    few = DataSet(first_records(data.train, 12), first_records(data.val, 3), data.format, data.root)
    for to in ("coco", "voc"):
        again = convert(few, to, tmp_path / to)
        check_same(few.train, again.train)


def first_records(source: Source, count: int) -> Source:
    from dasnet_lightning.data.sources.selection import Selection

    masked = [record for record in source.records if record.has_masks]
    return Selection(source, masked[:count], ())
