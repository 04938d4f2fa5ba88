"""VOC folders as other tools write them: encodings, list lines, image formats, flags, and classes that are not VOC's."""

from pathlib import Path

import pytest
from data_builders import SIZE, VocObject, filled_indices, make_voc, write_index_picture, write_picture, xml_text
from PIL import Image

from dasnet_lightning.data.records import MaskState
from dasnet_lightning.data.sources.open import open_dataset
from dasnet_lightning.data.sources.voc import VOC_CLASSES, VOCSource
from dasnet_lightning.errors import DataError

CAT = VocObject("cat", (6, 6, 15, 15))


def write_xml(root: Path, data: bytes) -> VOCSource:
    """Replace the annotation file of the only image."""
    make_voc(root, {"a": [CAT]}, database="")
    (root / "Annotations" / "a.xml").write_bytes(data)
    return VOCSource(root, "train")


def notes(source: VOCSource) -> str:
    return "\n".join(str(problem) for problem in source.problems)


@pytest.mark.parametrize(
    ("name", "declared", "encoding"),
    [
        ("猫", "gb2312", "gbk"),
        ("猫", "GBK", "gbk"),
        ("猫", "Shift_JIS", "shift_jis"),
        ("café", "ISO-8859-1", "latin-1"),
        ("café", "windows-1252", "cp1252"),
        ("猫", "utf-16", "utf-16"),
        ("猫", "utf-16", "utf-16-le"),
        ("猫", "utf-16", "utf-8"),
        ("猫", "utf-8", "utf-8-sig"),
        ("猫", "UTF-8", "utf-8"),
        ("猫", "", "utf-8"),
    ],
)
def test_class_names_follow_the_files_own_encoding(tmp_path: Path, name: str, declared: str, encoding: str) -> None:
    head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    text = head + xml_text([VocObject(name, CAT.box)], database="")
    assert write_xml(tmp_path, text.encode(encoding)).class_names == ("background", name)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("", "declares no encoding and therefore is in utf-8 but cannot be read so"),
        ('<?xml version="1.0" encoding="utf-8"?>', "declares utf-8 but cannot be read so"),
        ('<?xml version="1.0" encoding="klingon"?>', "declares the unknown encoding 'klingon'"),
    ],
)
def test_wrong_encodings_are_named(tmp_path: Path, head: str, words: str) -> None:
    text = head + xml_text([VocObject("黑猫", CAT.box)])
    with pytest.raises(DataError, match=rf"a\.xml: {words}"):
        write_xml(tmp_path, text.encode("gbk"))


def test_entities_are_refused_in_every_encoding(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><annotation/>'
    with pytest.raises(DataError, match="DOCTYPE or entities"):
        write_xml(tmp_path, text.encode("utf-16"))


@pytest.mark.parametrize(
    "line",
    ["a", "a 1", "a  -1", "a.jpg", "a.JPG", "a.jpg  1", '"a"', '"a.jpg" 1', "JPEGImages/a.jpg", "JPEGImages/a.jpg 1"],
)
def test_list_lines_may_hold_more_than_an_id(tmp_path: Path, line: str) -> None:
    root = make_voc(tmp_path, {"a": [CAT]}, ["a"], lists={})
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(f"{line}\r\n".encode())
    source = VOCSource(root, "train")
    assert [record.image_id for record in source.records] == ["a"]
    assert source.records[0].has_masks
    expected = "" if line == "a" else f"1 of 1 lines hold more than an image id, '{line}' is read as 'a'"
    assert expected in notes(source)
    assert (notes(source) == "") == (line == "a")


def test_ids_that_look_like_flags_and_suffixes_stay_whole(tmp_path: Path) -> None:
    ids = ["a", "a 1", "b.png", "c -1"]
    source = VOCSource(make_voc(tmp_path, {image_id: [CAT] for image_id in ids}), "train")
    assert [record.image_id for record in source.records] == ids
    assert source.problems == ()


@pytest.mark.parametrize("suffix", [".bmp", ".BMP", ".tif", ".tiff", ".webp", ".PNG", ".jpeg"])
def test_images_of_all_formats_are_found(tmp_path: Path, suffix: str) -> None:
    root = make_voc(tmp_path, {"a": [CAT]})
    picture = root / "JPEGImages" / "a.jpg"
    with Image.open(picture) as image:
        image.save(picture.with_suffix(suffix))
    picture.unlink()
    assert VOCSource(root, "train").records[0].path == picture.with_suffix(suffix)


@pytest.mark.parametrize(
    ("text", "difficult"),
    [("1", True), ("True", True), ("yes", True), ("0", False), ("false", False), ("", False), ("Unspecified", False)],
)
def test_difficult_is_read_in_every_writing(tmp_path: Path, text: str, difficult: bool) -> None:
    xml = xml_text([CAT]).replace("<difficult>0", f"<difficult>{text}")
    assert write_xml(tmp_path, xml.encode()).records[0].objects[0].ignore is difficult


def test_an_unknown_flag_is_named_with_its_value(tmp_path: Path) -> None:
    xml = xml_text([CAT]).replace("<difficult>0", "<difficult>maybe")
    with pytest.raises(DataError, match=r"a\.xml: object 1: 'difficult' is 'maybe', expected 0 or 1"):
        write_xml(tmp_path, xml.encode())


def test_sizes_as_floats_are_read_and_zero_ones_come_from_the_image(tmp_path: Path) -> None:
    for size in ((30.0, 40.0), (0, 0), ("?", "?")):
        xml = xml_text([CAT], size)  # type: ignore[arg-type]
        assert write_xml(tmp_path / str(size[0]), xml.encode()).records[0].size == SIZE


def test_only_the_classes_that_occur_are_used_with_a_note(tmp_path: Path) -> None:
    images = {"a": [VocObject("person", CAT.box)], "b": [CAT]}
    make_voc(tmp_path, images, lists={"train": ["a"], "val": ["b"]}, database="Unknown")
    for split in ("train", "val"):
        source = VOCSource(tmp_path, split)
        assert source.class_names == ("background", "cat", "person")
        assert "those that occur are used, not VOC's 20" in notes(source)
    assert open_dataset(tmp_path).train.class_names == ("background", "cat", "person")


def test_voc_itself_keeps_its_classes(tmp_path: Path) -> None:
    source = VOCSource(make_voc(tmp_path, {"a": [CAT]}), "train")
    assert source.class_names == VOC_CLASSES
    assert source.problems == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:1,2,3::\ncat:3,4,5::\n"),
        ("classes.txt", "dog\ncat\n"),
    ],
)
def test_a_class_file_names_the_classes(tmp_path: Path, name: str, text: str) -> None:
    make_voc(tmp_path, {"a": [CAT], "b": [VocObject("person", CAT.box)]}, database="")
    (tmp_path / name).write_text(text)
    source = VOCSource(tmp_path, "train")
    assert source.class_names == ("background", "dog", "cat", "person")
    assert "those that a file lists are used" in notes(source)


def test_a_class_called_background_is_renamed_with_a_note(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": [VocObject("background", CAT.box), VocObject("void", CAT.box)]}, database="")
    source = VOCSource(tmp_path, "train")
    assert source.class_names == ("background", "background (class)", "void")
    assert "control characters: 'background' as 'background (class)'" in notes(source)


def test_polygons_in_the_xml_are_counted(tmp_path: Path) -> None:
    xml = xml_text([CAT, CAT]).replace("<bndbox>", "<polygon><x1>3</x1><y1>3</y1></polygon><bndbox>")
    source = write_xml(tmp_path, xml.encode())
    assert "2 objects have a <polygon>, which is not read" in notes(source)
    assert source.records[0].objects[0].mask is MaskState.ABSENT


def test_object_255_is_not_the_void(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": [CAT] * 256})
    write_index_picture(root / "SegmentationObject" / "a.png", filled_indices([CAT.box]))
    source = VOCSource(root, "train")
    masks = source.load_masks(source.records[0], [253, 254, 255])
    assert "at most 254 objects" not in masks.reasons[0]
    assert all("at most 254 objects" in reason for reason in masks.reasons[1:])
    assert masks.valid[1:] == (False, False)


@pytest.mark.parametrize("lists", [{"train": "abc"}, {"train": "abc", "val": "d"}])
def test_a_list_of_images_of_which_none_exists_names_the_files(tmp_path: Path, lists: dict[str, str]) -> None:
    make_voc(tmp_path, {name: [CAT] for name in "abcd"}, lists={split: list(ids) for split, ids in lists.items()})
    for name in "abc":
        (tmp_path / "JPEGImages" / f"{name}.jpg").unlink()
    for allow_missing in (False, True):
        with pytest.raises(DataError, match=r"image 'a\.jpg': the image file does not exist") as caught:
            open_dataset(tmp_path, allow_missing=allow_missing, fix="drop")
        assert all(f"'{name}.jpg'" in str(caught.value) for name in "abc")
    write_picture(tmp_path / "JPEGImages" / "a.jpg")
    if "val" in lists:
        assert len(open_dataset(tmp_path, allow_missing=True).train.records) == 1
