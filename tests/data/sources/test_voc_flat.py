"""VOC XML files beside their images, or in folders that no VOC devkit has."""

from pathlib import Path

import pytest
from data_builders import VocObject, xml_text
from shape_builders import ABSENT, pictures, source_of, states

from dasnet_lightning.data.sources.shape_data import build_sources
from dasnet_lightning.data.sources.voc_flat import find_flat_voc
from dasnet_lightning.errors import DataError

CAT, DOG = VocObject("cat", (6, 6, 15, 15)), VocObject("dog", (1, 1, 40, 30), difficult=1)


def write_xml(root: Path, name: str, *objects: VocObject, size: tuple[int, int] | None = (30, 40)) -> Path:
    path = root / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(xml_text(objects, size))
    return path


@pytest.mark.parametrize(("xml", "image"), [("", ""), ("annotations/", "images/")])
def test_one_folder(tmp_path: Path, xml: str, image: str) -> None:
    pictures(tmp_path, f"{image}a.jpg", f"{image}b.png")
    write_xml(tmp_path, f"{xml}a", CAT, DOG)
    write_xml(tmp_path, f"{xml}b", size=None)
    source = source_of(find_flat_voc(tmp_path))
    assert source.class_names == ("background", "cat", "dog")
    assert states(source) == [[ABSENT, ABSENT], []]
    assert [item.box for item in source.records[0].objects] == [(5, 5, 15, 15), (0, 0, 40, 30)]
    assert [item.ignore for item in source.records[0].objects] == [False, True]
    assert source.records[1].size == (30, 40)


def test_folders_of_splits(tmp_path: Path) -> None:
    pictures(tmp_path, "train/a.jpg", "valid/a.jpg", "test/t.jpg", "train/bare.jpg")
    for name in ("train/a", "valid/a", "test/t"):
        write_xml(tmp_path, name, CAT)
    data = find_flat_voc(tmp_path)
    assert data is not None
    train, val, problems = build_sources(data)
    assert val is not None
    assert [record.path for record in (*train.records, *val.records)] == [
        tmp_path / "train/a.jpg",
        tmp_path / "valid/a.jpg",
    ]
    texts = list(map(str, problems))
    assert any("split 'test': 1 images are used neither" in text for text in texts)
    assert any("1 of 4 have no XML file" in text for text in texts)


def test_faults_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write_xml(tmp_path, "a", CAT, VocObject("cat", ("x", 1, 2, 3)), VocObject("", (1, 1, 5, 5)))
    with pytest.raises(DataError, match=r"a\.xml: object a/2 .*not four numbers.*\n.*object a/3 .*has no class name"):
        source_of(find_flat_voc(tmp_path))
    write_xml(tmp_path, "lost", CAT)
    with pytest.raises(DataError, match=r"lost\.xml: image 'lost': the image file does not exist"):
        source_of(find_flat_voc(tmp_path), fix="drop")
    assert states(source_of(find_flat_voc(tmp_path), fix="drop", allow_missing=True)) == [[ABSENT]]
    (tmp_path / "a.xml").write_text("<annotations></annotations>")
    assert find_flat_voc(tmp_path) is None
