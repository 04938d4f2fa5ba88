"""Synthetic data: reproducible for a seed, labels that fit the images, and foreign files left alone."""

from pathlib import Path

import numpy as np
import pytest

from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.records import MaskState
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.data.synthetic.scenes import (
    MAX_OBJECTS,
    MIN_PIXELS,
    MIN_VISIBLE,
    SyntheticScene,
    render_scene,
)
from dasnet_lightning.data.synthetic.shapes import OUTLINES, SHAPES
from dasnet_lightning.errors import DataError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("synthetic") / "data", 60, 20, size=96, seed=3)


@pytest.fixture(scope="module")
def data(written: Path) -> DataSet:
    return open_dataset(written)


def scenes(count: int, size: int = 96) -> list[SyntheticScene]:
    return [render_scene(np.random.default_rng([9, 0, index]), size) for index in range(count)]


def test_it_opens_as_a_data_set_without_any_problem(data: DataSet) -> None:
    assert (len(data.train.records), len(data.val.records), data.format) == (60, 20, "coco")
    assert data.problems == data.train.problems == ()
    assert data.train.class_names == data.val.class_names == ("background", *SHAPES)
    assert not {r.image_id for r in data.train.records} & {r.image_id for r in data.val.records}


def test_every_object_has_a_mask_whose_extent_is_its_box(data: DataSet) -> None:
    for record in (*data.train.records, *data.val.records):
        assert 1 <= len(record.objects) <= MAX_OBJECTS
        masks = data.train.load_masks(record, range(len(record.objects))) if record in data.train.records else None
        if masks is None:
            masks = data.val.load_masks(record, range(len(record.objects)))
        assert all(masks.valid)
        assert masks.masks.sum(axis=0).max() == 1, "visible parts do not overlap"
        for item, mask in zip(record.objects, masks.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert item.mask is MaskState.PRESENT
            assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert len(rows) >= MIN_PIXELS


def test_all_classes_occur_and_pictures_have_the_size(data: DataSet) -> None:
    assert {item.label for record in data.train.records for item in record.objects} == set(range(1, len(SHAPES) + 1))
    image = read_image(data.train.records[0].path, (96, 96))
    assert image.std() > 5


def test_writing_again_does_nothing(written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(written.rglob("*"))}
    called: list[int] = []
    write_synthetic(written, 60, 20, size=96, seed=3, progress=lambda done, total: called.append(done))
    assert {path: path.stat().st_mtime_ns for path in sorted(written.rglob("*"))} == before
    assert called == []


def test_one_seed_gives_one_data_set(written: Path, tmp_path: Path) -> None:
    again = write_synthetic(tmp_path / "again", 10, 2, size=96, seed=3)
    other = write_synthetic(tmp_path / "other", 10, 2, size=96, seed=4)
    for number in range(1, 11):
        name = f"train/{number:06d}.jpg"
        assert (again / name).read_bytes() == (written / name).read_bytes(), "a short set begins a longer one"
        assert (again / name).read_bytes() != (other / name).read_bytes()
    assert (again / "train/000001.jpg").read_bytes() != (again / "val/000001.jpg").read_bytes()


def test_an_interrupted_writing_is_taken_up(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path / "data", 4, 2, size=64)
    (root / "synthetic.json").unlink()
    (root / "train" / "000002.jpg").unlink()
    seen: list[tuple[int, int]] = []
    write_synthetic(root, 4, 2, size=64, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]
    assert len(open_dataset(root).train.records) == 4


def test_other_data_is_not_overwritten(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="other parameters"):
        write_synthetic(written, 60, 20, size=96, seed=4)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"contains thesis\.txt, choose an empty folder"):
        write_synthetic(tmp_path, 1, 1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "synthetic.json").write_text("{")
    with pytest.raises(DataError, match="other parameters"):
        write_synthetic(tmp_path / "broken", 1, 1)


@pytest.mark.parametrize(("train", "val", "size"), [(0, 1, 96), (1, 0, 96), (1, 1, 16)])
def test_impossible_sizes_are_refused(tmp_path: Path, train: int, val: int, size: int) -> None:
    with pytest.raises(DataError, match="at least"):
        write_synthetic(tmp_path / "data", train, val, size=size)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_have_the_area_they_claim(shape: str) -> None:
    level, area = OUTLINES[shape]
    axis = np.linspace(-1.2, 1.2, 600, dtype=np.float32)
    inside = level(axis[None, :] + 0 * axis[:, None], axis[:, None] + 0 * axis[None, :]) < 0
    assert inside.sum() * (2.4 / 600) ** 2 == pytest.approx(area, rel=0.01)
    assert not inside[[0, -1]].any()
    assert not inside[:, [0, -1]].any()


def test_shapes_stand_out_from_what_is_around_them() -> None:
    for scene in scenes(40):
        ground = ~np.any(scene.masks, axis=0)
        for mask in scene.masks:
            difference = scene.image[mask].mean(axis=0) - scene.image[ground].mean(axis=0)
            assert np.linalg.norm(difference / 255) > 0.15


def test_overlaps_occur_and_leave_enough_visible() -> None:
    sizes = [mask.sum() for scene in scenes(60) for mask in scene.masks]
    assert min(sizes) >= MIN_PIXELS
    touching = 0
    for scene in scenes(60):
        union = np.zeros_like(scene.masks[0])
        for mask in scene.masks:
            touching += bool((np.roll(mask, 1, axis=1) & union).any())
            union |= mask
    assert touching >= 10
    assert 0 < MIN_VISIBLE < 1
