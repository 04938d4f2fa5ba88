"""Parts of a union in the formats of annotation tools."""

from pathlib import Path

import pytest
import shape_writers
from data_builders import annotation, coco_content, make_coco, square_polygon

from dasnet_lightning.data.sources.union import open_union
from dasnet_lightning.data.sources.union_yaml import read_union
from dasnet_lightning.errors import DataError


@pytest.mark.parametrize("name", ["yolo", "labelme", "cvat", "label_studio", "voc"])
def test_parts_of_other_formats(tmp_path: Path, name: str) -> None:
    """Files of other formats join COCO files; their split "all" holds all images."""
    items = [shape_writers.Item(1, (1.0, 2.0, 20.0, 21.0)), shape_writers.Item(2, (3.0, 4.0, 30.0, 29.0))]
    (tmp_path / "other").mkdir()
    getattr(shape_writers, f"write_{name}")(tmp_path / "other", [items] * 3)
    make_coco(tmp_path / "coco", coco_content([annotation(1, segmentation=square_polygon())]), "train.json", "train")
    file = tmp_path / "parts.yaml"
    file.write_text("train:\n  - {root: coco, split: train}\n  - {root: other, split: all}\n")
    train, _, _ = open_union(read_union(file), allow_missing=False, fix="error")
    assert train.class_names == ("background", "cat", "dog")
    assert [len(record.objects) for record in train.records] == [1, 0, 2, 2, 2]
    assert [item.label for item in train.records[2].objects] == [1, 2]
    file.write_text("train:\n  - {root: coco, split: train}\n  - {root: other, split: val}\n")
    with pytest.raises(DataError, match="has no split 'val', only"):
        open_union(read_union(file), allow_missing=False, fix="error")


def test_a_folder_that_is_no_data_set_says_so(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "parts.yaml").write_text("train:\n  - {root: other, split: train}\n")
    with pytest.raises(DataError, match="no data set was found; the folder contains nothing"):
        open_union(read_union(tmp_path / "parts.yaml"), allow_missing=False, fix="error")
