"""COCO to every format that is written and back: boxes, masks, and which objects have none."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_builders import write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_formats import OPENERS, build_set
from shape_builders import ABSENT, PRESENT, iou

from dasnet_lightning.data.records import Source
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.data.writers import WRITERS
from dasnet_lightning.data.writers.convert import convert_dataset
from dasnet_lightning.rle import encode_mask

HEIGHT, WIDTH, CELL = 32, 48, 16  # objects with a mask lie in cells, because a pixel of VOC belongs to one object
CATEGORIES = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]

fractions = st.floats(0, 1, allow_nan=False).map(lambda value: round(value, 3))


@st.composite
def pixel_masks(draw: st.DrawFn) -> dict[str, Any]:
    """A mask of any pixels of a cell, with holes and several parts; its box is the extent of its pixels."""
    left, top = CELL * draw(st.integers(0, 2)), CELL * draw(st.integers(0, 1))
    side = draw(st.integers(2, CELL))
    bits = draw(st.lists(st.booleans(), min_size=side * side, max_size=side * side).filter(any))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + side, left : left + side] = np.reshape(bits, (side, side))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [int(columns[0]), int(rows[0]), int(np.ptp(columns) + 1), int(np.ptp(rows) + 1)]
    counts = {"size": [HEIGHT, WIDTH], "counts": encode_mask(mask).decode()}
    return {"bbox": box, "segmentation": counts, "cell": (left, top)}


@st.composite
def polygon_masks(draw: st.DrawFn) -> dict[str, Any]:
    """One or two polygons of a cell with fractional corners; the box is their extent."""
    left, top = CELL * draw(st.integers(0, 2)), CELL * draw(st.integers(0, 1))
    polygons = []
    for part in range(draw(st.integers(1, 2))):
        x0, x1 = left + 0.2 + 0.4 * draw(fractions), left + CELL - 0.6 + 0.4 * draw(fractions)
        y0, y1 = top + 8 * part + 0.3 * draw(fractions), top + 8 * part + 6.5 + draw(fractions)
        cut = 0.5 + 2 * draw(fractions)
        polygons.append([round(value, 3) for value in (x0, y0, x1 - cut, y0, x1, y1, x0 + cut, y1)])
    xs, ys = [v for part in polygons for v in part[::2]], [v for part in polygons for v in part[1::2]]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {"bbox": box, "segmentation": polygons, "cell": (left, top)}


@st.composite
def boxes_alone(draw: st.DrawFn) -> dict[str, Any]:
    """A box anywhere, over masks too, in the three spellings of an object without a mask."""
    x, y = draw(fractions) * (WIDTH - 8), draw(fractions) * (HEIGHT - 8)
    box = [x, y, 2 + draw(fractions) * (WIDTH - x - 2), 2 + draw(fractions) * (HEIGHT - y - 2)]
    absent = draw(st.sampled_from([{}, {"segmentation": []}, {"segmentation": None}]))
    return {"bbox": [round(value, 3) for value in box], "cell": None, **absent}


def one_mask_in_a_cell(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cells: set[object] = set()
    kept = [row for row in rows if row["cell"] is None or not (row["cell"] in cells or cells.add(row["cell"]))]
    return [{key: value for key, value in row.items() if key != "cell"} for row in kept]


OBJECTS = st.one_of(pixel_masks(), polygon_masks(), boxes_alone())
IMAGES = st.lists(OBJECTS, max_size=5).map(one_mask_in_a_cell)
# both classes occur, because labelme has no list of classes
SCENES = st.lists(IMAGES, min_size=1, max_size=2).map(lambda images: [*images, [{"bbox": [1, 1, 9, 9]}] * 2])


def write_coco(root: Path, scene: list[list[dict[str, Any]]]) -> DataSet:
    for split in ("train", "val"):
        images = [
            {"id": n, "file_name": f"{split}{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in range(len(scene))
        ]
        rows = [(number, row) for number, objects in enumerate(scene) for row in objects]
        annotations = [
            {"id": place, "image_id": number, "category_id": (4, 9)[place % 2], "iscrowd": 0, **row}
            for place, (number, row) in enumerate(rows)
        ]
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for image in images:
            write_picture(root / split / image["file_name"], (HEIGHT, WIDTH))
    return open_dataset(root)


def check_same(before: Source, after: Source, to: str) -> None:
    """Check boxes, classes, masks and mask states, object by object."""
    assert after.class_names == before.class_names
    assert [Path(record.path).name for record in after.records] == [record.path.name for record in before.records]
    for record, other in zip(before.records, after.records, strict=True):
        assert other.size == record.size
        assert [item.label for item in other.objects] == [item.label for item in record.objects]
        assert [item.mask for item in other.objects] == [item.mask for item in record.objects]
        for item, found in zip(record.objects, other.objects, strict=True):
            # YOLO and labelme have no box beside a mask: it is the extent of the polygons, at most a pixel off
            tolerance = 1.0 if to in ("yolo", "labelme") and item.mask is PRESENT else 1e-6
            assert found.box == pytest.approx(item.box, abs=tolerance)
        present = [index for index, item in enumerate(record.objects) if item.mask is PRESENT]
        if present:
            first, second = before.load_masks(record, present), after.load_masks(other, present)
            for one, two, valid in zip(first.masks, second.masks, second.valid, strict=True):
                assert valid == one.any()
                assert not valid or iou(one, two) >= 0.99


@settings(max_examples=20, deadline=None, derandomize=True)
@given(SCENES)
def test_every_format_gives_back_what_coco_holds(scene: list[list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = write_coco(Path(folder) / "in", scene)
        for to in WRITERS:
            convert_dataset(data, to, Path(folder) / to, "link")
            again = open_dataset(Path(folder) / to)
            check_same(data.train, again.train, to)
            check_same(data.val, again.val, to)
            # from the format that was written to COCO and into itself: nothing changes any more
            for back in dict.fromkeys(("coco", to)):
                convert_dataset(again, back, Path(folder) / f"{to}_{back}", "link")
                check_same(again.train, open_dataset(Path(folder) / f"{to}_{back}").train, back)


@pytest.fixture
def mixed(tmp_path: Path) -> DataSet:
    """Masks, boxes alone over and beside them, an image with boxes alone, and one without objects."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2:14, 3:13] = True
    mask[5:8, 6:9] = False
    ring = {"bbox": [3, 2, 10, 12], "segmentation": {"size": [HEIGHT, WIDTH], "counts": encode_mask(mask).decode()}}
    corner = {"bbox": [20, 18, 12, 11], "segmentation": [[20, 18, 32, 18, 32, 26, 29, 29, 20, 29]]}
    scene = [
        [ring, {"bbox": [8, 6, 16, 17]}, corner, {"bbox": [34, 2, 11, 9]}],
        [{"bbox": [4, 4, 12, 13]}, {"bbox": [10, 8, 30, 20]}],
        [corner, ring],
        [],
    ]
    return write_coco(tmp_path / "in", scene)


def write_all(data: DataSet, root: Path) -> dict[str, DataSet]:
    for to in WRITERS:
        convert_dataset(data, to, root / to)
    return {name: open_dataset(root / name) for name in OPENERS}


def test_every_format_gives_the_same_training_targets(mixed: DataSet, tmp_path: Path) -> None:
    expected = build_set(mixed)
    written = write_all(mixed, tmp_path)
    assert set(written) == set(WRITERS)
    for name, data in written.items():
        assert data.format == name
        dataset = build_set(data)
        assert len(dataset) == len(expected) == 4
        for index in range(4):
            target, other = expected[0, index].target, dataset[0, index].target
            assert torch.equal(expected[0, index].image, dataset[0, index].image)
            torch.testing.assert_close(other.boxes, target.boxes, atol=1e-4, rtol=0)
            for field in ("labels", "has_mask", "ignore"):
                assert torch.equal(getattr(other, field), getattr(target, field)), (name, field)
            assert (other.masks is None) == (target.masks is None) == (index in (1, 3))
            if target.masks is not None:
                assert torch.equal(other.masks[other.has_mask], target.masks[target.has_mask]), name
                assert torch.equal(other.void, target.void), name
                assert not other.void.any()


@pytest.mark.parametrize("to", ["coco", "voc", "labelme"])
def test_crowd_is_kept_where_the_format_has_it(tmp_path: Path, to: str) -> None:
    crowd = {"bbox": [20, 18, 12, 11], "iscrowd": 1}
    masked = {**crowd, "segmentation": [[20, 18, 32, 18, 32, 26, 29, 29, 20, 29]], "bbox": [20, 18, 12, 11]}
    data = write_coco(tmp_path / "in", [[crowd, {"bbox": [1, 1, 9, 9]}], [masked, {"bbox": [1, 1, 9, 9]}]])
    convert_dataset(data, to, tmp_path / "out")
    again = open_dataset(tmp_path / "out")
    assert [[item.ignore for item in record.objects] for record in again.train.records] == [[True, False]] * 2
    check_same(data.train, again.train, to)


def test_the_flag_of_an_object_removes_its_mask_and_that_of_an_image_does_not(mixed: DataSet, tmp_path: Path) -> None:
    root = tmp_path / "voc"
    convert_dataset(mixed, "voc", root)
    states = [[PRESENT, ABSENT, PRESENT, ABSENT], [ABSENT, ABSENT], [PRESENT, PRESENT], []]

    def found() -> list[list[object]]:
        return [[item.mask for item in record.objects] for record in open_dataset(root).train.records]

    assert found() == states
    file = root / "Annotations" / "train0.xml"
    text = file.read_text()
    assert text.count("<segmented>1</segmented>") == 1  # of the image; labelImg and others write 0 there beside masks
    file.write_text(text.replace("<segmented>1</segmented>", "<segmented>0</segmented>"))
    assert found() == states
    # without any mask left, the file in SegmentationObject brings none back
    file.write_text(file.read_text().replace("<difficult>", "<segmented>0</segmented><difficult>"))
    assert found() == [[ABSENT] * 4, *states[1:]]
    convert_dataset(open_dataset(root), "voc", tmp_path / "again")
    root = tmp_path / "again"
    assert found() == [[ABSENT] * 4, *states[1:]]
