"""CVAT's VOC and segmentation-mask exports: masks by color, joined to the boxes that they overlap."""

from pathlib import Path

import numpy as np
import pytest
from data_builders import SIZE, VocObject, xml_text
from PIL import Image
from shape_builders import ABSENT, PRESENT, mask_of, messages, pictures, source_of, states

from dasnet_lightning.data.sources.cvat_masks import find_cvat_masks, read_label_map
from dasnet_lightning.data.sources.shape_data import build_sources
from dasnet_lightning.data.sources.voc_colors import find_colors
from dasnet_lightning.data.sources.voc_lists import read_list
from dasnet_lightning.errors import DataError
from dasnet_lightning.visualization import voc_palette

LABEL_MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\nroad: wet:10,20,30::\n"
CAT, ROAD = (250, 50, 83), (10, 20, 30)
COLORS = voc_palette()


def write_maps(root: Path, name: str, objects: np.ndarray, classes: np.ndarray) -> None:
    for folder, picture in (("SegmentationObject", objects), ("SegmentationClass", classes)):
        path = root / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)).save(path)


def make_export(root: Path, ids: tuple[str, ...] = ("a",), split: str = "default") -> Path:
    """Instance 1 is a cat, instance 2 a road; both are rectangles."""
    pictures(root, *(f"JPEGImages/{name}.jpg" for name in ids))
    numbers = np.zeros(SIZE, int)
    numbers[5:15, 10:20] = 1
    numbers[20:28, 4:30] = 2
    classes = np.array([(0, 0, 0), CAT, ROAD])[numbers]
    for name in ids:
        write_maps(root, name, COLORS[numbers], classes)
    (root / "labelmap.txt").write_text(LABEL_MAP)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return root


def test_the_color_map_is_that_of_voc() -> None:
    assert COLORS[[0, 1, 2, 15, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]
    picture = COLORS[np.arange(256).reshape(16, 16)]
    assert np.array_equal(find_colors(picture, COLORS), np.arange(256).reshape(16, 16))
    with pytest.raises(ValueError, match=r"the color \(1, 2, 3\) does not belong"):
        find_colors(np.array([[[1, 2, 3]]], np.uint8), COLORS)


def test_masks_are_read_by_color(tmp_path: Path) -> None:
    source = source_of(find_cvat_masks(make_export(tmp_path)))
    record = source.records[0]
    assert source.class_names == ("background", "cat", "road: wet")
    assert [(item.label, item.box) for item in record.objects] == [(1, (10, 5, 20, 15)), (2, (4, 20, 30, 28))]
    expected = np.zeros(SIZE, bool)
    expected[5:15, 10:20] = True
    assert np.array_equal(mask_of(source, record, 0), expected)
    assert messages(source) == []


def test_boxes_of_the_xml_are_edges_and_meet_their_masks(tmp_path: Path) -> None:
    make_export(tmp_path)
    objects = (
        VocObject("road: wet", (4.5, 20, 30, 28)),
        VocObject("cat", (30, 1, 39, 9)),
        VocObject("cat", (11, 5, 20, 15)),
    )
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(xml_text(objects))
    source = source_of(find_cvat_masks(tmp_path))
    record = source.records[0]
    assert [item.box for item in record.objects] == [(4.5, 20, 30, 28), (30, 1, 39, 9), (11, 5, 20, 15)]
    assert states(source) == [[PRESENT, ABSENT, PRESENT]]
    assert mask_of(source, record, 0)[24, 10]
    assert mask_of(source, record, 2)[10, 15]


def test_subfolders_splits_and_class_lists(tmp_path: Path) -> None:
    make_export(tmp_path, ("day 1/a", "b"), "Train")
    (tmp_path / "ImageSets/Segmentation/Train.txt").write_text('"day 1/a"\n')
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("b\n")
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir()
    (main / "cat_Train.txt").write_text("b 1\n")
    data = find_cvat_masks(tmp_path)
    assert data is not None
    train, val, _ = build_sources(data)
    assert val is not None
    assert [record.image_id for record in (*train.records, *val.records)] == ["day 1/a", "b"]
    assert states(train) == states(val) == [[PRESENT, PRESENT]]


def test_masks_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    make_export(tmp_path, ("a", "b", "c"))
    write_maps(tmp_path, "a", np.full((*SIZE, 3), 7), np.zeros((*SIZE, 3)))
    (tmp_path / "SegmentationObject" / "b.png").unlink()
    write_maps(tmp_path, "lost", np.zeros((*SIZE, 3)), np.zeros((*SIZE, 3)))
    data = find_cvat_masks(tmp_path)
    source = source_of(data)
    assert [len(record.objects) for record in source.records] == [0, 0, 2]
    texts = messages(source)
    assert any(
        "SegmentationObject/a.png: image 'a': no mask can be read: the color (7, 7, 7)" in text for text in texts
    )
    assert any("SegmentationClass/b.png: image 'b': has no file in SegmentationObject" in text for text in texts)
    assert data is not None
    assert "SegmentationObject/lost.png: file: belongs to no image" in str(data.problems[0])
    (tmp_path / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(DataError, match="image 'c': the image file does not exist"):
        source_of(find_cvat_masks(tmp_path))


def test_unreadable_label_maps_are_named_and_list_lines_are_read(tmp_path: Path) -> None:
    assert find_cvat_masks(tmp_path) is None
    (tmp_path / "labelmap.txt").write_text("cat:1,2::\n")
    with pytest.raises(DataError, match=r"labelmap\.txt: line 1 is 'cat:1,2::', expected name:red,green,blue"):
        read_label_map(tmp_path / "labelmap.txt")
    (tmp_path / "default.txt").write_text('a.jpg  1\r\nb -1\n"c d" 0\n\nv1.5\n')
    assert read_list(tmp_path / "default.txt") == ["a", "b", "c d", "v1.5"]
