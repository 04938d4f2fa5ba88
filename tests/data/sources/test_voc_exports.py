"""VOC folders as annotation tools write them: masks in subfolders, in colors or with `.PNG`, and lists with quotes."""

from pathlib import Path

import numpy as np
import pytest
from data_builders import SIZE, VocObject, filled_indices, make_voc
from PIL import Image
from shape_builders import PRESENT, mask_of, states

from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.visualization import voc_palette

CAT = VocObject("cat", (6, 6, 15, 15))
MASK = np.zeros(SIZE, bool)
MASK[6:14, 6:14] = True


def move(root: Path, old: str, new: str) -> None:
    for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml"), ("SegmentationObject", ".png")):
        target = root / folder / f"{new}{suffix}"
        target.parent.mkdir(exist_ok=True)
        (root / folder / f"{old}{suffix}").rename(target)


@pytest.mark.parametrize(("name", "line"), [("day 1/a", '"day 1/a"'), ("day/a", "day/a.jpg"), ("my a", '"my a"  1')])
def test_subfolders_and_names_with_spaces(tmp_path: Path, name: str, line: str) -> None:
    root = make_voc(tmp_path, {"a": [CAT]}, ["a"])
    move(root, "a", name)
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"{line}\r\n")
    source = VOCSource(root, "train")
    assert [record.image_id for record in source.records] == [name]
    assert states(source) == [[PRESENT]]
    assert np.array_equal(mask_of(source, source.records[0], 0), MASK)


def test_classes_are_found_in_subfolders(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": [CAT]}, ["a"], database="")
    move(root, "a", "day1/a")
    (root / "ImageSets" / "Main" / "train.txt").write_text("day1/a.jpg\n")
    source = VOCSource(root, "train")
    assert source.class_names == ("background", "cat")
    assert [record.image_id for record in source.records] == ["day1/a"]


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": [CAT]}, ["a"])
    (root / "SegmentationObject" / "a.png").rename(root / "SegmentationObject" / "a.PNG")
    source = VOCSource(root, "train")
    assert np.array_equal(mask_of(source, source.records[0], 0), MASK)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_in_the_colors_of_voc(tmp_path: Path, mode: str) -> None:
    root = make_voc(tmp_path, {"a": [CAT]}, ["a"])
    colors = voc_palette()[filled_indices([(6, 6, 15, 15)])]
    Image.fromarray(colors).convert(mode).save(root / "SegmentationObject" / "a.png")
    source = VOCSource(root, "train")
    masks = source.load_masks(source.records[0], [0])
    assert np.array_equal(masks.masks[0], MASK)
    assert masks.void is not None
    assert masks.void.sum() == 100 - 64
