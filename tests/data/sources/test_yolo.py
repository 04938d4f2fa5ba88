"""YOLO data sets: boxes stay boxes, polygons are masks, and every spelling of the configuration is read."""

from pathlib import Path

import pytest
from PIL import Image
from shape_builders import ABSENT, INVALID, PRESENT, TRIANGLE, mask_of, messages, pictures, source_of, states

from dasnet_lightning.data.label_audit import audit_labels
from dasnet_lightning.data.sources.shape_data import build_sources
from dasnet_lightning.data.sources.yolo import find_yolo
from dasnet_lightning.errors import DataError

BOX = "1 0.5 0.5 0.25 0.2"
POLYGON = "0 " + " ".join(f"{x / 40} {y / 30}" for x, y in TRIANGLE)
NAMES = "names: [cat, dog]\n"


def write_label(root: Path, name: str, *rows: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(rows) + "\n")


def make_yolo(root: Path, yaml: str, *rows: str, images: str = "images/train", labels: str = "labels/train") -> Path:
    pictures(root, f"{images}/a.jpg", f"{images}/b.jpg")
    write_label(root, f"{labels}/a.txt", *rows)
    (root / "data.yaml").write_text(yaml)
    return root


def test_a_box_stays_a_box_beside_polygons_in_the_same_file(tmp_path: Path) -> None:
    source = source_of(find_yolo(make_yolo(tmp_path, "train: images/train\n" + NAMES, BOX, POLYGON)))
    assert source.class_names == ("background", "cat", "dog")
    assert source.category_ids == {1: 0, 2: 1}
    assert states(source) == [[ABSENT, PRESENT], []]
    box, polygon = source.records[0].objects
    assert (box.box, box.label) == ((15.0, 12.0, 25.0, 18.0), 2)
    assert polygon.box == pytest.approx((5, 4, 25, 24))
    assert mask_of(source, source.records[0], 1).sum() == pytest.approx(200, rel=0.1)
    assert messages(source) == [f"{tmp_path}/data.yaml: split 'train': 1 of 2 images have no label file, "
                                "they count as images without objects"]  # fmt: skip


@pytest.mark.parametrize(
    ("yaml", "images", "labels"),
    [
        ("path: .\ntrain: images/train\nval: images/train\nnames: {0: cat, 1: dog}\nnc: 2\n", "images/train", "labels/train"),
        ("train: ../train/images\nval: ../train/images\nnames: ['cat', 'dog']\n", "train/images", "train/labels"),
        ("path: /nowhere\ntrain: train/images\nval: [train/images]\nnames: {0: cat, 1: dog}\n", "train/images", "train/labels"),
        ("train: /content/set/images/train\nval: images/train\nnames: [cat, dog]\n", "images/train", "labels/train"),
        ("path: sub\ntrain: images\nval: images\nnames: [cat, dog]\n", "sub/images", "sub/labels"),
        ("train: [one, two]\nval: one\nnames: [cat, dog]\n", "one", "one"),
        ("train: train\nval: train\nnames: [cat, dog]\n", "train/images", "train/labels"),
    ],
)  # fmt: skip
def test_spellings_of_the_configuration(tmp_path: Path, yaml: str, images: str, labels: str) -> None:
    (tmp_path / "two").mkdir()
    data = find_yolo(make_yolo(tmp_path, yaml, BOX, images=images, labels=labels))
    assert data is not None
    train, val, _ = build_sources(data)
    assert val is not None
    for source in (train, val):
        assert [len(record.objects) for record in source.records] == [1, 0]
        assert source.class_names == ("background", "cat", "dog")
    assert find_yolo(tmp_path / "data.yaml") is not None


def test_lists_of_images(tmp_path: Path) -> None:
    make_yolo(tmp_path, "train: train.txt\nval: val.txt\n" + NAMES, BOX)
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\n/other/machine/images/train/b.jpg\nimages/train/c.jpg\n")
    (tmp_path / "val.txt").write_text("images/train/b.jpg\n")
    data = find_yolo(tmp_path)
    assert data is not None
    with pytest.raises(DataError, match=r"train\.txt: image 'images/train/c\.jpg': the image file does not exist"):
        build_sources(data)
    train, val, _ = build_sources(data, allow_missing=True)
    assert val is not None
    assert [record.image_id for record in train.records] == ["images/train/a", "images/train/b"]
    assert [record.image_id for record in val.records] == ["images/train/b"]


def test_a_listed_image_is_not_replaced_by_another_of_its_name(tmp_path: Path) -> None:
    make_yolo(tmp_path, "train: train.txt\n" + NAMES, BOX)
    pictures(tmp_path, "images/val/z.jpg")
    (tmp_path / "train.txt").write_text("images/train/a.jpg\nimages/train/z.jpg\n")
    with pytest.raises(DataError, match=r"image 'images/train/z\.jpg'"):
        source_of(find_yolo(tmp_path))


def test_exports_with_class_files(tmp_path: Path) -> None:
    pictures(tmp_path / "studio", "images/a.jpg", "images/b.jpg")
    write_label(tmp_path / "studio", "labels/a.txt", BOX)
    (tmp_path / "studio" / "classes.txt").write_text("cat\ndog\n")
    assert states(source_of(find_yolo(tmp_path / "studio"))) == [[ABSENT], []]
    cvat = tmp_path / "cvat"
    pictures(cvat, "obj_train_data/a.jpg")
    write_label(cvat, "obj_train_data/a.txt", BOX)
    (cvat / "obj.names").write_text("cat\ndog\n")
    (cvat / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    (cvat / "train.txt").write_text("data/obj_train_data/a.jpg\n")
    assert states(source_of(find_yolo(cvat))) == [[ABSENT]]


def test_a_test_split_is_reported(tmp_path: Path) -> None:
    make_yolo(tmp_path, "train: images/train\nval: images/val\ntest: images/test\n" + NAMES, BOX)
    pictures(tmp_path, "images/test/t.jpg")
    data = find_yolo(tmp_path)
    assert data is not None
    texts = [str(problem) for problem in build_sources(data)[2]]
    assert any("split 'test': 1 images are used neither for training" in text for text in texts)
    assert any("split 'val': 'images/val' does not exist" in text for text in texts)


ROWS = {
    "cat 0.5 0.5 0.1 0.1": "class 'cat' is not an index from 0 to 1",
    "7 0.5 0.5 0.1 0.1": "class '7' is not an index from 0 to 1",
    "0.5 0.5 0.5 0.1 0.1": "class '0.5' is not an index",
    "0 0.5 0.5 x 0.1": "not a number",
    "0 0.5 0.5 0.1": "has 4 numbers",
    "0 0.5 0.5 0.1 0.1 0.9": "six numbers, as predictions with a confidence",
    "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4": "has 8 numbers",
    "0 320 0.5 0.1 0.1": "coordinate 320 of row",
    "0 0.5 0.5 nan 0.1": "coordinate nan",
    "0 0.5 0.5 0 0.1": "has zero width",
    "0 0.5 0.5 -0.1 0.1": "negative width",
}


@pytest.mark.parametrize(("row", "text"), ROWS.items())
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: str, text: str) -> None:
    data = find_yolo(make_yolo(tmp_path, "train: images/train\n" + NAMES, BOX, row, POLYGON))
    with pytest.raises(DataError, match=r"a\.txt: object images/train/a/2 \(image 'images/train/a\.jpg'.*" + text):
        source_of(data)
    source = source_of(data, fix="drop")
    assert states(source) == [[ABSENT, PRESENT], []]
    assert len(audit_labels(source, None, "train")) == 3, "every row is accounted for"


def test_an_invalid_polygon_keeps_its_box(tmp_path: Path) -> None:
    row = "0 0.1 0.1 0.4 0.4 0.1 0.1 0.4 0.4"
    source = source_of(find_yolo(make_yolo(tmp_path, "train: images/train\n" + NAMES, row)))
    assert states(source) == [[INVALID], []]
    assert "fewer than three distinct points" in source.records[0].objects[0].reason


def test_pixel_coordinates_and_foreign_tasks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 2 rows hold coordinates beyond 0\.\.1: they seem to be pixels"):
        find_yolo(make_yolo(tmp_path / "a", "train: images/train\n" + NAMES, "0 20 15 10 10", "1 9 9 4 4"))
    pose = "0 0.5 0.5 0.2 0.2 " + "0.5 0.5 " * 2
    data = find_yolo(make_yolo(tmp_path / "b", "train: images/train\nkpt_shape: [2, 2]\n" + NAMES, pose))
    assert states(source_of(data)) == [[ABSENT], []]
    assert data is not None
    assert any("key points are not used" in str(problem) for problem in data.problems)


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("train: nowhere\n" + NAMES, "split 'train': 'nowhere' does not exist"),
        (NAMES, "has no 'train' with images"),
        ("train: images/train\nnames: cat\n", "neither a list nor a table"),
        ("train: images/train\nnc: 3\n" + NAMES, "'nc' is 3 but 'names' has 2 names"),
        ("train: images/train\nnames: [cat, cat]\n", "several classes with the name"),
        ("train: [\n", "cannot be read as YAML"),
    ],
)
def test_faults_of_the_configuration(tmp_path: Path, yaml: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        source_of(find_yolo(make_yolo(tmp_path, yaml, BOX)))


def test_labels_without_names_or_images_are_reported(tmp_path: Path) -> None:
    pictures(tmp_path, "images/a.jpg")
    write_label(tmp_path, "labels/a.txt", BOX)
    with pytest.raises(DataError, match="YOLO data set without class names"):
        find_yolo(tmp_path)
    make_yolo(tmp_path, "train: images/train\n" + NAMES, BOX)
    write_label(tmp_path, "labels/train/lost.txt", BOX)
    data = find_yolo(tmp_path)
    assert data is not None
    assert f"{tmp_path}/labels/train/lost.txt: labels: no image has this name" in map(str, data.problems)


def test_boxes_follow_the_upright_picture(tmp_path: Path) -> None:
    make_yolo(tmp_path, "train: images/train\n" + NAMES, BOX)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "images/train/a.jpg"
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    record = source_of(find_yolo(tmp_path)).records[0]
    assert record.size == (40, 30)
    assert record.objects[0].box == (11.25, 16.0, 18.75, 24.0)


def test_a_class_called_background_is_an_ordinary_class(tmp_path: Path) -> None:
    source = source_of(find_yolo(make_yolo(tmp_path, "train: images/train\nnames: [background, dog]\n", POLYGON, BOX)))
    assert source.class_names == ("background", "background (object)", "dog")
    assert [item.label for item in source.records[0].objects] == [1, 2]
    assert any("is renamed to" in text for text in messages(source))
