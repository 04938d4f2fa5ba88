"""SBD: boxes and masks come from the index maps, and errors name every faulty file."""

from pathlib import Path

import numpy as np
import pytest
from data_builders import SIZE, make_sbd, write_instances, write_picture
from scipy.io import savemat

from dasnet_lightning.data.augmentation.transforms import build_transform
from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.data.records import MaskState
from dasnet_lightning.data.sources import matlab
from dasnet_lightning.data.sources.checks import RecordsError
from dasnet_lightning.data.sources.sbd import SBDSource, find_sbd_root, read_instances
from dasnet_lightning.data.sources.voc_xml import VOC_CLASSES
from dasnet_lightning.errors import DataError

CAT = (8, (5, 5, 15, 15))
DOG = (12, (12, 10, 35, 25))


@pytest.mark.parametrize("compressed", [True, False])
def test_boxes_are_derived_from_the_map_of_objects(tmp_path: Path, compressed: bool) -> None:
    source = SBDSource(make_sbd(tmp_path, {"2008_000008": [CAT, DOG], "b": []}, compressed=compressed), "train")
    first, second = source.records
    assert source.class_names == VOC_CLASSES
    assert first.path == tmp_path / "img" / "2008_000008.jpg"
    assert first.size == SIZE
    assert [VOC_CLASSES[item.label] for item in first.objects] == ["cat", "dog"]
    assert [item.box for item in first.objects] == [(5, 5, 15, 15), (12, 10, 35, 25)]
    assert [item.object_id for item in first.objects] == ["2008_000008/1", "2008_000008/2"]
    assert {item.mask for item in first.objects} == {MaskState.PRESENT}
    assert second.objects == ()
    (note,) = source.problems
    assert (note.action, "bounding box of its mask" in note.message) == ("warning", True)


def test_masks_are_cut_out_in_the_order_asked_for(tmp_path: Path) -> None:
    source = SBDSource(make_sbd(tmp_path, {"a": [CAT, DOG]}), "train")
    masks = source.load_masks(source.records[0], [1, 0])
    assert masks.valid == (True, True)
    assert masks.void is None
    expected = np.zeros((2, *SIZE), dtype=bool)
    expected[0, 10:25, 12:35] = True
    expected[1, 5:15, 5:15] = True
    expected[1, 10:15, 12:15] = False  # the dog lies on top
    np.testing.assert_array_equal(masks.masks, expected)
    assert source.load_masks(source.records[0], []).masks.shape == (0, *SIZE)


def test_maps_of_16_bits_hold_more_than_255_objects(tmp_path: Path) -> None:
    make_sbd(tmp_path, {"a": []})
    picture = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE)
    picture[picture > 300] = 0
    write_instances(tmp_path, "a", picture, [1 + k % 20 for k in range(300)])
    source = SBDSource(tmp_path, "train")
    assert len(source.records[0].objects) == 300
    assert source.load_masks(source.records[0], [299]).masks[0].sum() == 1
    assert source.records[0].objects[299].label == 20


@pytest.mark.parametrize("below", [".", "dataset", "benchmark_RELEASE/dataset"])
def test_the_root_is_found_from_above(tmp_path: Path, below: str) -> None:
    root = make_sbd(tmp_path / below, {"a": [CAT]})
    assert find_sbd_root(tmp_path) == root
    assert len(SBDSource(tmp_path, "train").records) == 1


def test_all_joins_both_lists(tmp_path: Path) -> None:
    images = {name: [CAT] for name in "abc"}
    root = make_sbd(tmp_path, images, {"train": ["c", "a"], "val": ["b"], "few": ["b"]})
    assert [record.image_id for record in SBDSource(root, "all").records] == ["c", "a", "b"]
    assert [record.image_id for record in SBDSource(root, "few").records] == ["b"]
    (root / "val.txt").write_text("b\na\n")
    with pytest.raises(DataError, match=r"1 image ids are in both train.txt and val.txt: a;"):
        SBDSource(root, "all")


def test_lists_are_checked(tmp_path: Path) -> None:
    root = make_sbd(tmp_path, {"a": [CAT]})
    with pytest.raises(DataError, match=r"no list val.txt, the folder has the lists train"):
        SBDSource(root, "val")
    (root / "train.txt").write_text("a\na\n")
    with pytest.raises(DataError, match=r"train.txt: 1 image ids are repeated: a"):
        SBDSource(root, "train")
    (root / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        SBDSource(root, "train")
    (root / "train.txt").unlink()
    with pytest.raises(DataError, match=r"expected train.txt and val.txt"):
        SBDSource(root, "train")


def test_a_folder_that_is_no_sbd_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an SBD data set, expected the folders img and inst"):
        SBDSource(tmp_path, "train")
    root = make_sbd(tmp_path / "s", {"a": [CAT]})
    for file in (root / "inst").iterdir():
        file.unlink()
    (root / "inst").rmdir()
    with pytest.raises(DataError, match="has cls but no inst"):
        SBDSource(root, "train")


def test_missing_files_are_listed_at_once_or_left_out(tmp_path: Path) -> None:
    root = make_sbd(tmp_path, {name: [CAT] for name in "abc"}, {"train": ["a", "b", "c", "../d"]})
    (root / "img" / "a.jpg").unlink()
    (root / "inst" / "b.mat").unlink()
    with pytest.raises(RecordsError, match="3 images cannot be used") as caught:
        SBDSource(root, "train")
    text = str(caught.value)
    assert f"image 'b.jpg': has no usable instance file, expected {root / 'inst' / 'b.mat'}" in text
    assert "image 'a.jpg': the image file does not exist" in text
    assert "climbs out of the image folder" in text
    source = SBDSource(root, "train", allow_missing=True)
    assert [record.image_id for record in source.records] == ["c"]
    assert [problem.action for problem in source.problems] == ["warning", *["refused"] * 3]


def _mat(path: Path, **content: object) -> None:
    savemat(path, content)


def _struct(segmentation: np.ndarray, categories: list[int]) -> dict[str, np.ndarray]:
    return {"Segmentation": segmentation, "Categories": np.array(categories).reshape(-1, 1)}


ONES = np.ones(SIZE, dtype=np.uint8)
FAULTS = {
    "html": (lambda path: path.write_text("<!DOCTYPE html><html>404</html>"), "saved instead of the MATLAB file"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "Git LFS pointer"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "it is truncated or damaged"),
    "header alone": (lambda path: path.write_bytes(path.read_bytes()[:128]), "no variable GTinst"),
    "flipped": (lambda path: path.write_bytes(_flip(path.read_bytes())), "it is truncated or damaged"),
    "hdf5": (lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file" + bytes(500)), "saved in version 7.3"),
    "cls": (lambda path: _mat(path, GTcls={"Segmentation": ONES}), "has no variable GTinst"),
    "no categories": (lambda path: _mat(path, GTinst={"Segmentation": ONES}), "no Segmentation or no Categories"),
    "no struct": (lambda path: _mat(path, GTinst=ONES), "no Segmentation or no Categories"),
    "floats": (lambda path: _mat(path, GTinst=_struct(ONES * 0.5, [1])), "expected a map of indices"),
    "cube": (lambda path: _mat(path, GTinst=_struct(np.ones((2, 2, 2), np.uint8), [1])), "expected a map of indices"),
    "index": (lambda path: _mat(path, GTinst=_struct(ONES * 3, [1, 2])), "index 3 but Categories 2 objects"),
    "category 0": (lambda path: _mat(path, GTinst=_struct(ONES, [0])), "category 0 is unknown, expected VOC's 1 to 20"),
    "category 21": (lambda path: _mat(path, GTinst=_struct(ONES, [21])), "category 21 is unknown"),
    "half": (lambda path: _mat(path, GTinst=_struct(ONES, [1.5])), "not a list of class numbers"),
}


def _flip(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_named(tmp_path: Path, fault: str) -> None:
    root = make_sbd(tmp_path, {"a": [CAT], "b": [CAT]})
    spoil, words = FAULTS[fault]
    spoil(root / "inst" / "b.mat")
    with pytest.raises(RecordsError) as caught:
        SBDSource(root, "train", allow_missing=True, fix="drop")
    line, advice = str(caught.value).splitlines()
    assert line.startswith(f"{root / 'inst' / 'b.mat'}: image 'b.jpg': ")
    assert words in line
    assert advice.startswith("1 files cannot be used")


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_sbd(tmp_path, {"a": [CAT]})
    file = write_instances(root, "a", np.ones((3000, 3000), dtype=np.uint8), [1])
    assert file.stat().st_size < 300_000
    assert read_instances(file).index_map.shape == (3000, 3000)
    monkeypatch.setattr(matlab, "MAX_INFLATED_BYTES", 1_000_000)
    with pytest.raises(DataError, match="more bytes than any image needs"):
        read_instances(file)


def test_an_object_without_a_pixel_is_refused_or_dropped(tmp_path: Path) -> None:
    root = make_sbd(tmp_path, {"a": [CAT, (12, (5, 5, 15, 15)), (15, (20, 20, 30, 30))]})  # the dog covers the cat
    with pytest.raises(RecordsError, match=r"object a/1 \(image 'a.jpg', class 'cat'\): has no pixel"):
        SBDSource(root, "train")
    source = SBDSource(root, "train", fix="drop")
    assert [item.object_id for item in source.records[0].objects] == ["a/2", "a/3"]
    masks = source.load_masks(source.records[0], [1])
    assert masks.masks[0, 20:30, 20:30].all()
    assert masks.masks.sum() == 100


def test_an_image_of_another_size_is_an_error_with_both_sizes(tmp_path: Path) -> None:
    source = SBDSource(make_sbd(tmp_path, {"a": [CAT]}), "train")
    write_picture(tmp_path / "img" / "a.jpg", size=(31, 40))
    dataset = SegmentationDataset(source, source.records, frozenset({"a"}), build_transform("none", (32, 32)), 0)
    with pytest.raises(DataError, match=r"a.jpg: the image has 40x31 pixels but its annotation says 40x30"):
        dataset[(0, 0)]


def test_class_names_may_be_given_in_another_order(tmp_path: Path) -> None:
    root = make_sbd(tmp_path, {"a": [CAT]})
    names = ("background", "zebra", *VOC_CLASSES[:0:-1])
    source = SBDSource(root, "train", class_names=names)
    assert names[source.records[0].objects[0].label] == "cat"
    with pytest.raises(DataError, match=r"lack SBD's \['aeroplane', .*name all of VOC's"):
        SBDSource(root, "train", class_names=("background", "cat"))
