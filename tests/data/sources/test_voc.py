"""VOC data sets: boxes become edges, masks are opened only on request, and errors name every faulty record."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_builders import SIZE, VocObject, filled_indices, make_voc, write_index_picture, write_picture, xml_text

from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.records import MaskState
from dasnet_lightning.data.sources.checks import RecordsError
from dasnet_lightning.data.sources.voc import VOC_CLASSES, VOCSource, find_voc_root
from dasnet_lightning.data.splits import make_split, mask_labels
from dasnet_lightning.errors import ConfigError, DataError

CAT = VocObject("cat", (6, 6, 15, 15))
DOG = VocObject("dog", (21, 11, 35, 25))


_watched: list[list[str]] = []


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watched:
        _watched[-1].append(str(arguments[0]))


sys.addaudithook(_watch)  # cannot be taken back, so it does nothing outside the fixture


@pytest.fixture
def opened_files() -> Iterator[list[str]]:
    """All paths that this process opens during the test, by whatever means."""
    _watched.append([])
    yield _watched[-1]
    _watched.pop()


def test_records_hold_edges_labels_and_mask_states(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": [CAT, DOG], "b": [VocObject("cat", (1, 1, 40, 30), difficult=1)]}, masked=["a"])
    source = VOCSource(root, "train")
    first, second = source.records
    assert source.class_names == VOC_CLASSES
    assert len(VOC_CLASSES) == 21
    assert first.path == root / "JPEGImages" / "a.jpg"
    assert first.size == SIZE
    assert [item.box for item in first.objects] == [(5, 5, 15, 15), (20, 10, 35, 25)]
    assert [VOC_CLASSES[item.label] for item in first.objects] == ["cat", "dog"]
    assert [item.object_id for item in first.objects] == ["a/1", "a/2"]
    assert {item.mask for item in first.objects} == {MaskState.PRESENT}
    assert second.objects[0].box == (0, 0, 40, 30)
    assert second.objects[0].mask is MaskState.ABSENT
    assert second.objects[0].ignore
    assert source.problems == ()


def test_masks_are_cut_out_in_the_order_asked_for(tmp_path: Path) -> None:
    source = VOCSource(make_voc(tmp_path, {"a": [CAT, DOG]}, masked=["a"]), "train")
    masks = source.load_masks(source.records[0], [1, 0])
    picture = filled_indices([CAT.box, DOG.box])
    assert masks.valid == (True, True)
    np.testing.assert_array_equal(masks.masks, np.stack([picture == 2, picture == 1]))
    np.testing.assert_array_equal(masks.void, picture == 255)
    assert source.load_masks(source.records[0], []).masks.shape == (0, *SIZE)


def test_reading_records_and_drawing_splits_opens_no_mask(tmp_path: Path, opened_files: list[str]) -> None:
    root = make_voc(tmp_path, {"a": [CAT, DOG], "b": [CAT]}, masked=["a", "b"])
    for path in (root / "SegmentationObject").iterdir():
        path.write_bytes(b"no picture at all")
    opened_files.clear()
    source = VOCSource(root, "train")
    split = make_split(*mask_labels(source.records), "all", seed=0)
    assert len(split.image_ids) == 2
    assert [path for path in opened_files if path.endswith("a.xml")], "the watch sees what is opened"
    assert not [path for path in opened_files if "SegmentationObject" in path]
    source.load_masks(source.records[0], [0])
    assert [path for path in opened_files if "SegmentationObject" in path] != []


def test_garbage_instead_of_a_mask_leaves_the_box(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": [CAT]}, masked=["a"])
    (root / "SegmentationObject" / "a.png").write_bytes(b"garbage")
    source = VOCSource(root, "train")
    masks = source.load_masks(source.records[0], [0])
    assert masks.valid == (False,)
    assert "a.png cannot be read" in masks.reasons[0]
    assert source.records[0].objects[0].box == (5, 5, 15, 15)


def test_a_mask_picture_of_another_size_is_invalid(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": [CAT]})
    write_index_picture(root / "SegmentationObject" / "a.png", filled_indices([CAT.box], (60, 80)))
    source = VOCSource(root, "train")
    masks = source.load_masks(source.records[0], [0])
    assert not masks.valid[0]
    assert "80x60 pixels, its image 40x30" in masks.reasons[0]


def test_a_color_picture_is_not_an_index_map(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": [CAT]})
    write_picture(root / "SegmentationObject" / "a.png")
    source = VOCSource(root, "train")
    assert "a.png is not a palette picture of object indices" in source.load_masks(source.records[0], [0]).reasons[0]


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([(6, 6, 15, 15)], ["", "the mask is empty"]),
        ([(21, 11, 35, 25), (6, 6, 15, 15)], ["only 0 % of the mask", "only 0 % of the mask"]),
        ([CAT.box, DOG.box, (1, 1, 4, 4)], ["indices up to 3 but the XML has 2", "indices up to 3"]),
    ],
)
def test_masks_that_do_not_belong_are_invalid(
    tmp_path: Path, boxes: list[tuple[int, int, int, int]], words: list[str]
) -> None:
    root = make_voc(tmp_path, {"a": [CAT, DOG]})
    write_index_picture(root / "SegmentationObject" / "a.png", filled_indices(boxes))
    source = VOCSource(root, "train")
    masks = source.load_masks(source.records[0], [0, 1])
    assert masks.valid == tuple(not word for word in words)
    for reason, word in zip(masks.reasons, words, strict=True):
        assert word in reason


def test_a_refused_object_does_not_shift_the_masks_of_the_others(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": [VocObject("cat", (9, 9, 5, 5)), DOG]})
    write_index_picture(root / "SegmentationObject" / "a.png", filled_indices([(1, 1, 4, 4), DOG.box]))
    source = VOCSource(root, "train", fix="drop")
    masks = source.load_masks(source.records[0], [0])
    assert masks.valid == (True,)
    assert masks.masks[0][15, 25]
    assert [problem.action for problem in source.problems] == ["refused"]


@pytest.mark.parametrize("below", ["", "VOCdevkit/VOC2012", "VOC2012"])
def test_the_root_is_found_from_above(tmp_path: Path, below: str) -> None:
    root = make_voc(tmp_path / below, {"a": [CAT]})
    assert find_voc_root(tmp_path) == root
    assert len(VOCSource(tmp_path, "train").records) == 1


def test_several_roots_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the folders Annotations, JPEGImages"):
        find_voc_root(tmp_path)
    for year in ("VOC2007", "VOC2012"):
        make_voc(tmp_path / "VOCdevkit" / year, {"a": [CAT]})
    with pytest.raises(DataError, match="VOC2007 and VOC2012, choose one"):
        find_voc_root(tmp_path)


def test_the_list_in_main_comes_first(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": [CAT], "b": [CAT]}, lists={"train": ["a", "b"]})
    make_voc(tmp_path, {"a": [CAT]}, lists={"train": ["a"], "val": ["a"]}, folder="Segmentation")
    assert len(VOCSource(tmp_path, "train").records) == 2
    assert len(VOCSource(tmp_path, "val").records) == 1
    with pytest.raises(
        DataError,
        match=r"no list of the split 'test', expected ImageSets/Main/test\.txt.*the folder has the lists train, val",
    ):
        VOCSource(tmp_path, "test")


def test_a_folder_without_lists_is_refused(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": [CAT]}, lists={})
    with pytest.raises(DataError, match="the folder has no lists"):
        VOCSource(tmp_path, "train")


@pytest.mark.parametrize(("ids", "words"), [([""], "is empty"), (["a", "a"], "repeated: a")])
def test_lists_are_checked(tmp_path: Path, ids: list[str], words: str) -> None:
    make_voc(tmp_path, {"a": [CAT]}, lists={"train": ids})
    with pytest.raises(DataError, match=words):
        VOCSource(tmp_path, "train")


def test_unknown_names_come_from_all_files_sorted(tmp_path: Path) -> None:
    images = {"a": [VocObject("zebra", (1, 1, 9, 9))], "b": [VocObject("ant", (1, 1, 9, 9)), CAT]}
    make_voc(tmp_path, images, lists={"train": ["a"], "val": ["b"]})
    for split in ("train", "val"):
        assert VOCSource(tmp_path, split).class_names == ("background", "ant", "cat", "zebra")


def test_given_class_names_must_cover_all(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": [VocObject("cats", (1, 1, 9, 9))]})
    with pytest.raises(RecordsError, match=r"a\.xml: object 1: class 'cats' is unknown, did you mean 'cat'"):
        VOCSource(tmp_path, "train", class_names=VOC_CLASSES)
    assert VOCSource(tmp_path, "train", class_names=("background", "cats")).records[0].objects[0].label == 1


def test_names_that_differ_by_case_are_warned_about(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": [VocObject("Cat", (1, 1, 9, 9)), CAT]})
    (problem,) = VOCSource(tmp_path, "train").problems
    assert problem.action == "warning"
    assert "'Cat', 'cat'" in problem.record


def test_all_missing_images_are_listed_at_once_or_left_out(tmp_path: Path) -> None:
    make_voc(tmp_path, {name: [CAT, DOG] for name in "abcd"})
    for name in "bc":
        (tmp_path / "JPEGImages" / f"{name}.jpg").unlink()
    (tmp_path / "Annotations" / "d.xml").unlink()
    with pytest.raises(RecordsError, match=r"3 images cannot be used") as caught:
        VOCSource(tmp_path, "train")
    assert all(f"'{name}.jpg'" in str(caught.value) for name in "bcd")
    source = VOCSource(tmp_path, "train", allow_missing=True)
    assert [record.image_id for record in source.records] == ["a"]
    assert len([problem for problem in source.problems if problem.record.startswith("image ")]) == 3
    assert len([problem for problem in source.problems if problem.record.startswith("object ")]) == 4


@pytest.mark.parametrize("box", [(9, 5, 5, 9), ("nan", 5, 9, 9), (100, 5, 120, 9), ("x", 5, 9, 9)])
def test_unusable_boxes_are_an_error_or_dropped(tmp_path: Path, box: tuple[float, float, float, float]) -> None:
    make_voc(tmp_path, {"a": [CAT, VocObject("dog", box)]})
    with pytest.raises(
        RecordsError, match=r"a\.xml: object a/2 \(image 'a\.jpg', class 'dog'\): box \[.*\n.*--fix drop"
    ):
        VOCSource(tmp_path, "train")
    source = VOCSource(tmp_path, "train", fix="drop")
    assert [item.object_id for item in source.records[0].objects] == ["a/1"]
    assert [problem.action for problem in source.problems] == ["refused"]


def test_a_box_of_one_pixel_is_a_box(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": [VocObject("cat", (7, 7, 7, 7))]})
    assert VOCSource(tmp_path, "train").records[0].objects[0].box == (6, 6, 7, 7)


def test_boxes_partly_outside_are_clipped_and_listed(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": [VocObject("cat", (30, 20, 50, 50))]})
    source = VOCSource(tmp_path, "train")
    assert source.records[0].objects[0].box == (29, 19, 40, 30)
    assert [problem.action for problem in source.problems] == ["clipped"]


def test_the_size_comes_from_the_image_where_the_file_does_not_say_it(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": [CAT]})
    (tmp_path / "Annotations" / "a.xml").write_text(xml_text([CAT], size=None))
    assert VOCSource(tmp_path, "train").records[0].size == SIZE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "DOCTYPE or entities"),
        ("<annotation><object>", "not valid XML"),
        ("<html/>", "begins with <html>"),
    ],
)
def test_damaged_and_dangerous_xml_is_refused(tmp_path: Path, text: str, words: str) -> None:
    make_voc(tmp_path, {"a": [CAT]})
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=words):
        VOCSource(tmp_path, "train")


def test_parts_of_objects_are_no_objects(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": [CAT]})
    file = tmp_path / "Annotations" / "a.xml"
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    file.write_text(file.read_text().replace("</object>", f"{part}</object>"))
    assert len(VOCSource(tmp_path, "train").records[0].objects) == 1


def test_names_with_spaces_and_unicode_work(tmp_path: Path) -> None:
    source = VOCSource(make_voc(tmp_path / "my data", {"größe 1": [CAT]}, masked=["größe 1"]), "train")
    assert source.load_masks(source.records[0], [0]).valid == (True,)


def test_images_without_objects_are_kept(tmp_path: Path) -> None:
    assert VOCSource(make_voc(tmp_path, {"a": []}), "train").records[0].objects == ()


def test_lists_cannot_lead_out_of_the_root(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc", {"a": [CAT]}, lists={"train": ["../../a"]})
    with pytest.raises(RecordsError, match="climbs out"):
        VOCSource(tmp_path / "voc", "train")


def test_an_unknown_fix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fix is 'maybe'"):
        VOCSource(make_voc(tmp_path, {"a": [CAT]}), "train", fix="maybe")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "images", "masked"), [("voc12_animals", 959, 959), ("voc07_subset", 497, 44)])
def test_the_photographs_are_read_whole(shared: Path, name: str, images: int, masked: int) -> None:
    source = VOCSource(shared / "data" / name, "trainval")
    assert (len(source.records), sum(record.has_masks for record in source.records)) == (images, masked)
    assert source.problems == ()
    assert source.class_names == VOC_CLASSES
    for record in [record for record in source.records if record.has_masks][:10]:
        assert read_image(record.path, record.size).shape[:2] == record.size
        assert all(source.load_masks(record, range(len(record.objects))).valid)
