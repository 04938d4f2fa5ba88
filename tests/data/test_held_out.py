"""Held-out images choose the score threshold, are not trained by stage one, and the label audit says so."""

from pathlib import Path

import pytest

from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.label_audit import HELD_OUT, audit_dataset
from dasnet_lightning.data.sources.open import open_dataset
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.data.validation_split import choose_validation, hold_out
from dasnet_lightning.errors import ConfigError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=100, num_val=2, size=64)


def build(shapes: Path, **options: object) -> MixedSupervisionDataModule:
    return MixedSupervisionDataModule(str(shapes), image_size=32, batch_size=4, **options)


def test_held_out_images_are_calibrated_on_and_not_trained(shapes: Path) -> None:
    data = build(shapes, held_out=0.25)
    trained = {record.image_id for record in data.train_set().records}
    calibrated = {image for batch in data.calibration_dataloader(200) for image in batch.image_ids}
    assert (len(trained), len(calibrated)) == (75, 25)
    assert not trained & calibrated
    assert len([1 for batch in data.calibration_dataloader(10) for _ in batch.image_ids]) == 9


def test_other_stages_train_all_images(shapes: Path) -> None:
    for supervision in ("masks", "mixed"):
        assert len(build(shapes, held_out=0.25, supervision=supervision).train_set().records) == 100


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_few_images_are_not_held_out(share: float, shapes: Path) -> None:
    data = build(shapes, held_out=share)
    assert len(data.train_set().records) == 100, "ten images say too little about scores"
    assert sum(len(batch.image_ids) for batch in data.calibration_dataloader(200)) == 100


def test_the_choice_does_not_depend_on_other_images(shapes: Path) -> None:
    records = open_dataset(shapes).train.records
    whole = hold_out(records, 0.5)
    assert hold_out(records[::-1], 0.5) == whole
    assert not whole & choose_validation(records)
    ranked = hold_out(records, 0.3)
    assert ranked < whole


def test_the_audit_names_them(shapes: Path) -> None:
    data = open_dataset(shapes)
    held_out = hold_out(data.train.records, 0.25)
    rows = audit_dataset(data, None, held_out)
    assert {row.image_id for row in rows if row.box == HELD_OUT} == held_out
    assert {row.mask for row in rows if row.box == HELD_OUT} == {"trained"}, "stage two trains their masks"
    assert HELD_OUT not in {row.box for row in rows if row.split == "val"}


def test_a_share_that_leaves_too_little_is_refused(shapes: Path) -> None:
    with pytest.raises(ConfigError, match=r"held_out is 0\.9, expected 0 to 0\.5"):
        build(shapes, held_out=0.9)
