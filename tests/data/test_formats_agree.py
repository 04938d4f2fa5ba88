"""What holds in every format alike: unused files are reported once, changed masks are noticed, test splits are opened."""

import shutil
from pathlib import Path

import pytest
import shape_writers
from data_builders import write_picture
from shape_writers import Item

from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.fingerprint import describe_changes, fingerprint
from dasnet_lightning.data.sources.open import open_dataset
from dasnet_lightning.data.unused_files import find_unused_files, list_problems

FORMATS = ("coco", "yolo", "labelme", "cvat", "label_studio", "voc")
WITH_MASKS = FORMATS[:5]
BOX, SHAPE = Item(1, (1.0, 2.0, 20.0, 21.0)), Item(2, (5.0, 6.0, 25.0, 26.0), ((5, 6), (25, 6), (15, 26)))
OTHER_SHAPE = Item(2, SHAPE.box, ((5, 6), (25, 6), (25, 26), (15, 20)))


def write(root: Path, name: str, *items: Item, images: int = 10) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    getattr(shape_writers, f"write_{name}")(root, [items] * images)
    return root


@pytest.mark.parametrize("name", FORMATS)
def test_an_unused_picture_is_one_message(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "data", name, BOX)
    assert find_unused_files(open_dataset(root)) == ()
    for number in range(3):
        write_picture(root / "more" / f"x{number}.jpg")
    data = open_dataset(root)
    if name == "yolo":  # its images folder is listed whole, other folders are not
        assert len(data.train.records) + len(data.val.records) in (10, 13)
    texts = [str(problem) for problem in list_problems(data) if "x0.jpg" in str(problem)]
    used = {record.path.name for source in data.sources.values() for record in source.records}
    assert len(texts) == (0 if "x0.jpg" in used else 1), texts
    assert all("3 pictures that no annotation in use names" in text for text in texts)


@pytest.mark.parametrize("name", FORMATS)
def test_a_second_annotation_file_is_reported(tmp_path: Path, name: str) -> None:
    """Each format beside a COCO file in a folder of its own."""
    root = write(tmp_path / "data", name, BOX)
    write(tmp_path / "coco", "coco", BOX, images=2)
    (root / "old").mkdir()
    shutil.copy(tmp_path / "coco" / "all.json", root / "old" / "labels.json")
    data = open_dataset(root)
    assert data.format == name
    texts = [str(problem) for problem in list_problems(data) if "labels.json" in str(problem)]
    assert len(texts) == 1
    assert "2 images with 2 labels: not used" in texts[0]


@pytest.mark.parametrize("name", WITH_MASKS)
def test_changed_masks_are_noticed_in_every_format(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "data", name, BOX, SHAPE)
    before = fingerprint(open_dataset(root))
    assert before["files"] == {"train": {}, "val": {}}  # masks are hashed image by image
    assert describe_changes(before, fingerprint(open_dataset(write(root, name, BOX, SHAPE)))) == []
    changes = describe_changes(before, fingerprint(open_dataset(write(root, name, BOX, OTHER_SHAPE))))
    assert len(changes) == 2
    assert changes[0].startswith("8 images with other masks (")
    assert changes[1].startswith("2 images with other masks (")


@pytest.mark.parametrize("name", FORMATS)
def test_all_label_files_are_known(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "data", name, BOX, SHAPE if name in WITH_MASKS else BOX)
    data = open_dataset(root)
    labels = {path for path in root.rglob("*") if path.suffix in (".json", ".xml", ".txt", ".yaml")}
    assert labels <= {path for source in data.sources.values() for path in source.files}


def test_the_data_module_tests_on_the_test_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, items in (("train", (BOX, SHAPE)), ("valid", (SHAPE,)), ("test", (SHAPE,))):
        write(tmp_path / split, "labelme", *items, images=3)
    module = MixedSupervisionDataModule(str(tmp_path), image_size=64, batch_size=2, num_workers=0)
    batches = list(module.test_dataloader())
    assert [image_id for batch in batches for image_id in batch.image_ids] == [f"test/im{n}" for n in range(3)]
    # the classes of labelme files are those of all splits
    assert [target.labels.tolist() for batch in batches for target in batch.targets] == [[2]] * 3
    assert all(target.truth is not None for batch in batches for target in batch.targets)
    shutil.rmtree(tmp_path / "test")
    module = MixedSupervisionDataModule(str(tmp_path), image_size=64, batch_size=2, num_workers=0)
    assert next(image_id for batch in module.test_dataloader() for image_id in batch.image_ids) == "valid/im0"
