"""Unions of VOC, SBD and COCO: every image once, the best boxes and masks, no validation image in training."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_builders import (
    SIZE,
    VocObject,
    annotation,
    coco_content,
    make_coco,
    make_sbd,
    make_voc,
    square_polygon,
    write_picture,
)

from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.label_audit import audit_labels, summarize
from dasnet_lightning.data.records import MaskState
from dasnet_lightning.data.sources.checks import RecordsError
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.data.sources.union import box_iou
from dasnet_lightning.data.sources.voc_xml import VOC_CLASSES
from dasnet_lightning.errors import DataError
from dasnet_lightning.types import VOID

CAT = VocObject("cat", (6, 6, 15, 15))  # the edges 5, 5, 15, 15
DOG = VocObject("dog", (21, 11, 35, 25))
SBD_CAT = (8, (5, 5, 15, 14))  # a row less than VOC's box
SBD_DOG = (12, (20, 10, 35, 25))
COCO_CLASSES = ((1, "person"), (5, "airplane"), (44, "bottle"), (63, "couch"), (90, "toothbrush"))


def make_parts(folder: Path) -> None:
    """VOC 2007 and 2012, SBD and COCO as their archives unpack, with a handful of images."""
    seven = {"000001": [CAT], "000002": [DOG]}
    make_voc(folder / "VOCdevkit/VOC2007", seven, [], {"trainval": ["000001"], "test": ["000002"]})
    twelve = {"2008_000001": [CAT, DOG], "2008_000002": [DOG], "2008_000003": [CAT], "2008_000004": [CAT]}
    root = make_voc(folder / "VOCdevkit/VOC2012", twelve, ["2008_000003", "2008_000004"], {"trainval": list(twelve)})
    (root / "ImageSets/Segmentation").mkdir()
    (root / "ImageSets/Segmentation/train.txt").write_text("2008_000003\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("2008_000004\n")
    sbd = {"2008_000001": [SBD_DOG, SBD_CAT], "2008_000004": [SBD_CAT], "2008_000009": [SBD_CAT, SBD_DOG]}
    make_sbd(folder / "benchmark_RELEASE/dataset", sbd, {"train": list(sbd)[:1], "val": list(sbd)[1:]})
    rows = [
        annotation(1, image=1, category=5, segmentation=square_polygon()),
        annotation(2, image=1, category=90),
        annotation(3, image=2, category=90),
        annotation(4, image=3, category=63),
    ]
    make_coco(folder / "coco", coco_content(rows, 4, COCO_CLASSES), "annotations/instances_train2017.json", "train2017")


VOC07 = "{root: VOCdevkit/VOC2007, split: trainval}"
VOC12 = "{root: VOCdevkit/VOC2012, split: trainval}"
SBD = "{root: benchmark_RELEASE/dataset, split: all}"
COCO = "{root: coco, split: train2017, classes: voc}"
SEG_TRAIN = "{root: VOCdevkit/VOC2012, split: train, list: Segmentation}"
SEG_VAL = "{root: VOCdevkit/VOC2012, split: val, list: Segmentation}"


def write_union(folder: Path, train: list[str], val: list[str] | None = None, more: str = "") -> Path:
    file = folder / "set.yaml"
    lists = {"train": train, "val": [SEG_VAL] if val is None else val}
    text = "".join(f"{name}: [{', '.join(parts)}]\n" for name, parts in lists.items() if parts)
    file.write_text(text + more, encoding="utf-8")
    return file


def open_union(folder: Path, train: list[str], val: list[str] | None = None, more: str = "", **options) -> DataSet:
    make_parts(folder)
    return open_dataset(write_union(folder, train, val, more), **options)


def ids(source) -> list[str]:
    return [record.image_id for record in source.records]


def warnings(data: DataSet) -> str:
    problems = (*data.train.problems, *data.val.problems, *data.problems)
    return "\n".join(str(problem) for problem in problems if problem.action == "warning")


def test_all_parts_become_one_data_set(tmp_path: Path) -> None:
    data = open_union(tmp_path, [VOC07, VOC12, SBD, COCO])
    assert (data.format, data.root) == ("union", tmp_path / "set.yaml")
    assert data.train.class_names == data.val.class_names == VOC_CLASSES
    assert ids(data.train) == [
        "000001", "2008_000001", "2008_000002", "2008_000003", "2008_000009", "coco/train2017/a1.jpg",
        "coco/train2017/a3.jpg",
    ]  # fmt: skip
    assert ids(data.val) == ["2008_000004"]
    text = warnings(data)
    assert "images: 1 are in the validation split and left out of training: 2008_000004" in text
    assert "images: 1 are in several parts and count once" in text
    assert "1 of 5 categories are not VOC's: 2 of 4 annotations are left out; 2 of 4 images show none" in text
    assert "each is the bounding box of its mask" in text


def test_boxes_come_from_voc_and_masks_from_sbd(tmp_path: Path) -> None:
    data = open_union(tmp_path, [VOC12, SBD])
    record = next(record for record in data.train.records if record.image_id == "2008_000001")
    assert record.path.parent.name == "JPEGImages"
    assert [item.box for item in record.objects] == [(5, 5, 15, 15), (20, 10, 35, 25)]  # VOC's
    assert [item.mask for item in record.objects] == [MaskState.PRESENT] * 2
    masks = data.train.load_masks(record, [1, 0])  # SBD lists the dog first
    assert masks.valid == (True, True)
    assert masks.masks[0].sum() == 15 * 15
    assert masks.masks[0, 10:25, 20:35].all()
    assert masks.masks[1, 5:14, 5:15].all()
    assert masks.masks[1].sum() == 9 * 10


def test_masks_come_from_the_first_part_that_has_them(tmp_path: Path) -> None:
    """2008_000004 has masks in both: VOC's have a void rim, SBD's have none."""
    for order, has_void in (([VOC12, SBD], True), ([SBD, VOC12], False)):
        data = open_union(tmp_path / str(has_void), order, [VOC07])
        record = next(record for record in data.train.records if record.image_id == "2008_000004")
        assert record.objects[0].box == (5, 5, 15, 15)
        masks = data.train.load_masks(record, [0])
        assert masks.valid == (True,)
        assert (masks.void is not None) == has_void
        assert masks.masks[0].sum() == (64 if has_void else 90)


def test_masks_can_be_left_out(tmp_path: Path) -> None:
    no_masks = VOC12.replace("}", ", masks: false}")
    data = open_union(tmp_path, [no_masks], [VOC07])
    assert {item.mask for record in data.train.records for item in record.objects} == {MaskState.ABSENT}
    data = open_union(tmp_path / "2", [no_masks, SBD], [VOC07])
    states = {record.image_id: record.has_masks for record in data.train.records}
    assert states == {
        "2008_000001": True, "2008_000002": False, "2008_000003": False, "2008_000004": True, "2008_000009": True
    }  # fmt: skip
    assert data.train.load_masks(data.train.records[3], [0]).void is None  # SBD's, not VOC's


def test_masks_that_fit_no_box_are_counted_and_not_used(tmp_path: Path) -> None:
    make_parts(tmp_path)
    strangers = {"2008_000001": [(8, (5, 5, 15, 9)), (15, (20, 10, 35, 25))]}  # a small part of the cat; a person
    make_sbd(tmp_path / "other", strangers)
    other = "{root: other, split: train}"
    data = open_dataset(write_union(tmp_path, [VOC12, other]))
    record = data.train.records[0]
    assert [item.mask for item in record.objects] == [MaskState.ABSENT] * 2
    text = warnings(data)
    assert "masks: 2 overlap no box of their class (IoU 0.5) and are not used" in text
    assert "boxes: 2 got no mask although their image has some" in text
    rows = audit_labels(data.train, None, "train", verify_masks=True)
    assert summarize(rows)["all"]["absent"] == 3


def test_each_mask_belongs_to_one_box(tmp_path: Path) -> None:
    near = VocObject("cat", (7, 6, 15, 15))  # overlaps the mask less than the other
    make_voc(tmp_path / "V", {"a": [near, CAT], "b": [CAT]}, [], {"train": ["a"], "val": ["b"]})
    make_sbd(tmp_path / "S", {"a": [(8, (5, 5, 15, 15))]})
    parts = ["{root: V, split: train}", "{root: S, split: train}"]
    data = open_dataset(write_union(tmp_path, parts, ["{root: V, split: val}"]))
    assert [item.mask for item in data.train.records[0].objects] == [MaskState.ABSENT, MaskState.PRESENT]


def test_boxes_of_sbd_alone_are_those_of_its_masks(tmp_path: Path) -> None:
    data = open_union(tmp_path, [SBD])
    record = data.train.records[1]
    assert record.image_id == "2008_000009"
    assert [item.box for item in record.objects] == [(5, 5, 15, 14), (20, 10, 35, 25)]
    assert data.train.load_masks(record, [0, 1]).valid == (True, True)


def test_a_list_inside_another_adds_nothing(tmp_path: Path) -> None:
    data = open_union(tmp_path, [VOC12, SEG_TRAIN])
    assert ids(data.train) == ["2008_000001", "2008_000002", "2008_000003"]
    assert "1 are in several parts and count once" in warnings(data)


def test_validation_images_may_stay_and_are_warned_about(tmp_path: Path) -> None:
    data = open_union(tmp_path, [VOC12], more="val_images_in_train: keep\n")
    assert "2008_000004" in ids(data.train)
    assert "1 images are in both splits" in warnings(data)


def test_a_union_without_validation_is_split(tmp_path: Path) -> None:
    data = open_union(tmp_path, [VOC07, VOC12, SBD, COCO], [])
    assert (len(data.train.records), len(data.val.records)) == (6, 2)
    assert not set(ids(data.train)) & set(ids(data.val))
    assert "no validation split was found" in warnings(data)


def test_coco_images_are_kept_apart_by_their_files(tmp_path: Path) -> None:
    """COCO data sets count their images from 1, so equal ids mean nothing."""
    for name, seed in (("x", "b"), ("y", "c")):
        content = coco_content([annotation(1)], 1)
        content["images"][0]["file_name"] = f"{seed}.jpg"
        make_coco(tmp_path / name, content, "train.json", ".")
    content = coco_content([annotation(1)], 1)
    content["images"][0]["file_name"] = "b.jpg"
    make_coco(tmp_path / "x", content, "val.json", ".")
    parts = ["{root: x, split: train}", "{root: y, split: train}"]
    data = open_dataset(write_union(tmp_path, parts, ["{root: x, split: val}"]))
    assert ids(data.val) == ["x/b.jpg"]
    assert ids(data.train) == ["y/c.jpg"]  # the other is the image of the validation
    assert data.train.class_names == ("background", "cat", "dog")
    assert dict(data.train.category_ids) == {1: 1, 2: 2}
    file = tmp_path / "x" / "val.json"
    data = open_dataset(write_union(tmp_path, parts[1:], [f"{{root: {file}}}"]))
    assert ids(data.val) == ["x/b.jpg"]


def test_coco_classes_are_mapped_to_vocs(tmp_path: Path) -> None:
    data = open_union(tmp_path, [COCO])
    assert [VOC_CLASSES[record.objects[0].label] for record in data.train.records] == ["aeroplane", "sofa"]
    assert data.train.load_masks(data.train.records[0], [0]).valid == (True,)
    data = open_union(tmp_path / "2", [COCO.replace("}", ", empty: keep}")])
    assert [len(record.objects) for record in data.train.records] == [1, 0, 1, 0]
    assert "2 of 4 images show none of VOC's classes and are kept without objects" in warnings(data)


def test_counts_are_asserted(tmp_path: Path) -> None:
    part = VOC12.replace("}", ", expect: 11540}")
    with pytest.raises(
        DataError, match=r"train, part 1: .*VOC2012 has 4 images, expected 11,540; complete the data set"
    ):
        open_union(tmp_path, [part])
    data = open_dataset(write_union(tmp_path, [part]), allow_missing=True)
    (problem,) = [problem for problem in data.train.problems if problem.action == "refused"]
    assert problem.message.endswith("has 4 images, expected 11,540")
    more = "expect: {train: 16551, val: 2}\n"
    with pytest.raises(RecordsError) as caught:
        open_dataset(write_union(tmp_path, [VOC07, VOC12], more=more))
    first, second, advice = str(caught.value).splitlines()
    assert first == f"{tmp_path / 'set.yaml'}: train: has 4 images, expected 16,551"
    assert second.endswith("val: has 1 images, expected 2")
    assert "allow missing images" in advice
    assert len(open_dataset(write_union(tmp_path, [VOC07, VOC12], more=more), allow_missing=True).problems) == 2
    counted = [VOC12.replace("}", ", expect: 4}")]
    assert len(open_dataset(write_union(tmp_path, counted, more="expect: {train: 3, val: 1}")).train.records) == 3


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("{root: VOCdevkit/VOC2013, split: train}", r"train, part 2: .*VOC2013 does not exist, put the data set there"),
        ("{root: VOCdevkit/VOC2012}", r"part 2: has no 'split'"),
        (
            "{root: VOCdevkit/VOC2012, split: test}",
            r"no list of the split 'test', expected ImageSets/Main/test.txt or ImageSets/Segmentation/test.txt; the",
        ),
        (
            "{root: VOCdevkit/VOC2012, split: trainval, list: Segmentation}",
            r"no list of the split 'trainval', expected ImageSets/Segmentation/trainval.txt; the",
        ),
        ("{root: VOCdevkit, split: trainval}", r"contains VOC2007 and VOC2012, choose one of them"),
        ("{root: VOCdevkit/VOC2012, split: train, classes: voc}", r"'classes: voc' is only for COCO data sets"),
        ("{root: benchmark_RELEASE/dataset, split: all, list: Main}", r"'list' is only for VOC data sets"),
        (
            "{root: benchmark_RELEASE/dataset, split: test}",
            r"no list test.txt, the folder has the lists train, val, all",
        ),
        (
            "{root: coco, split: test2017}",
            r"has no annotations of 'test2017', expected annotations/instances_test2017.json",
        ),
        (
            "{root: coco, split: train2017}",
            r"classes that the other parts lack \(airplane, couch, person and 2|'classes: voc'",
        ),
        ("{root: coco/annotations/instances_train2017.json, split: x}", r"is one file, remove 'split'"),
        ("{root: VOCdevkit/VOC2012/ImageSets/Main/trainval.txt}", r"expected a folder or a COCO .json file"),
        (
            "{root: VOCdevkit/VOC2012/ImageSets, split: x}",
            r"no data set was found; the folder contains Main/, Segmentation/",
        ),
    ],
)
def test_a_part_that_cannot_be_opened_is_named(tmp_path: Path, part: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_union(tmp_path, [SBD, part])


def test_images_of_one_id_and_different_sizes_are_refused(tmp_path: Path) -> None:
    make_parts(tmp_path)
    root = make_voc(tmp_path / "mine", {"000001": [CAT]}, [], {"train": ["000001"]})
    write_picture(root / "JPEGImages" / "000001.jpg", (50, 60))
    xml = root / "Annotations" / "000001.xml"
    xml.write_text(xml.read_text().replace("<width>40", "<width>60").replace("<height>30", "<height>50"))
    with pytest.raises(RecordsError, match=r"image '000001': .*has 40x30 pixels, but .*has 60x50 pixels"):
        open_dataset(write_union(tmp_path, [VOC07, "{root: mine, split: train}"]))


def test_classes_must_agree(tmp_path: Path) -> None:
    make_coco(tmp_path / "a", coco_content([annotation(1)]), "train.json", ".")
    make_coco(tmp_path / "b", coco_content([annotation(1)], 2, ((1, "cat"), (2, "cow"))), "train.json", ".")
    parts = ["{root: a, split: train}", "{root: b, split: train}"]
    with pytest.raises(DataError, match=r"\['cow'\] are not among the classes \['cat', 'dog'\]"):
        open_dataset(write_union(tmp_path, parts, []))
    file = make_coco(tmp_path / "c", coco_content([annotation(1)], 2, ((1, "zebra"), (2, "apple"))), "x.json", ".")
    with pytest.raises(DataError, match="has no category of VOC's, only apple, zebra"):
        open_dataset(write_union(tmp_path, [f"{{root: {file}, classes: voc}}"], []))
    twice = ((1, "couch"), (2, "sofa"))
    make_coco(tmp_path / "c", coco_content([annotation(1)], 2, twice), "x.json", ".")
    with pytest.raises(DataError, match="several categories mean 'sofa'"):
        open_dataset(write_union(tmp_path, [f"{{root: {file}, classes: voc}}"], []))


def test_refused_labels_are_counted_once(tmp_path: Path) -> None:
    make_parts(tmp_path)
    file = tmp_path / "VOCdevkit/VOC2012/Annotations/2008_000003.xml"
    file.write_text(file.read_text().replace("<xmax>15", "<xmax>5"))
    with pytest.raises(RecordsError, match=r"object 2008_000003/1 .*has zero width"):
        open_dataset(write_union(tmp_path, [VOC12, SEG_TRAIN]))
    data = open_dataset(write_union(tmp_path, [VOC12, SEG_TRAIN]), fix="drop")
    rows = [row for row in audit_labels(data.train, None, "train") if row.box.startswith("refused")]
    assert [(row.image_id, row.object_id) for row in rows] == [("2008_000003", "2008_000003/1")]


def test_a_data_module_trains_on_a_union(tmp_path: Path) -> None:
    make_parts(tmp_path)
    file = write_union(tmp_path, [VOC07, VOC12, SBD, COCO])
    data = MixedSupervisionDataModule(
        str(file), image_size=32, batch_size=2, supervision="mixed", mask_budget=2, augmentation="none"
    )
    samples = [data.train_set()[(0, index)] for index in range(len(data.train_set()))]
    assert len(samples) == 7
    assert {sample.image_id for sample in samples if sample.target.has_mask.any()} == set(data.mask_ids)
    (value,) = [data.val_set()[(0, index)] for index in range(len(data.val_set()))]
    assert value.target.truth is not None
    assert set(np.unique(value.target.truth.semantic)) == {0, VOC_CLASSES.index("cat"), VOID}
    assert data.category_ids == ()


def test_boxes_overlap() -> None:
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 2, 2), (2, 0, 3, 2)) == 0
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1


def test_sbd_alone_opens(tmp_path: Path) -> None:
    images = {f"i{number}": [SBD_CAT] for number in range(6)}
    make_sbd(tmp_path / "dataset", images, {"train": list(images)[:5], "val": list(images)[5:]})
    data = open_dataset(tmp_path)
    assert (data.format, len(data.train.records), len(data.val.records)) == ("sbd", 5, 1)
    assert data.train.records[0].size == SIZE
    (tmp_path / "dataset" / "val.txt").unlink()
    assert len(open_dataset(tmp_path).val.records) == 1
    (tmp_path / "dataset" / "train.txt").unlink()
    with pytest.raises(DataError, match=": SBD folder without lists"):
        open_dataset(tmp_path)


def test_yolo_files_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("train: images\nnames: [cat]\n")
    with pytest.raises(DataError, match="split 'train': 'images' does not exist"):
        open_dataset(file)
    (tmp_path / "x.json").write_text(json.dumps([]))
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(DataError, match=r"one COCO .json file, or a YAML list of parts"):
        open_dataset(tmp_path / "x.txt")
