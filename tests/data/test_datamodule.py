import logging
from pathlib import Path

import pytest
import torch
from data_builders import VocObject, make_voc
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.errors import BudgetError, ConfigError, DataError, UnknownNameError
from dasnet_lightning.types import Batch

SIDE = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("data") / "shapes", 10, 3, size=SIDE)


@pytest.fixture(scope="module")
def without_masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOC data set with garbage in every mask file."""
    images = {
        f"i{number}": [VocObject("cat", (5, 5, 20, 20)), VocObject("dog", (22, 8, 30, 25))] for number in range(13)
    }
    names = list(images)
    folder = make_voc(
        tmp_path_factory.mktemp("garbage"), images, masked=names, lists={"train": names[:10], "val": names[10:]}
    )
    for name in names:
        (folder / "SegmentationObject" / f"{name}.png").write_bytes(b"no picture")
    return folder


def build(root: Path, **options: object) -> MixedSupervisionDataModule:
    chosen = {"image_size": SIDE, "batch_size": 4, "supervision": "mixed", "mask_budget": 3} | options
    return MixedSupervisionDataModule(str(root), **chosen)  # type: ignore[arg-type]


def epochs(data: MixedSupervisionDataModule, count: int) -> list[list[Batch]]:
    loader, found = data.train_dataloader(), []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found.append(list(loader))
    return found


def ids(batches: list[Batch]) -> list[str]:
    return [image_id for batch in batches for image_id in batch.image_ids]


def test_boxes_use_all_images_and_no_mask(without_masks: Path) -> None:
    data = build(without_masks, supervision="boxes", mask_budget="all")
    data.setup("fit")
    assert data.split is None
    assert data.mask_ids == frozenset()
    seen = [batch for batches in epochs(data, 5) for batch in batches]
    assert set(ids(seen)) == {record.image_id for record in data.opened().dataset.train.records}
    assert all(target.masks is None and not target.has_mask.any() for batch in seen for target in batch.targets)
    with pytest.raises(ConfigError, match="no split to write"):
        data.write_split(without_masks / "split.json")


def test_masks_use_only_the_budget(root: Path) -> None:
    data = build(root, supervision="masks")
    data.setup("fit")
    (batch,) = epochs(data, 1)[0]  # three images fill one batch of four
    assert len(batch) == 4
    assert len(data.mask_ids) == 3
    assert set(batch.image_ids) == data.mask_ids
    assert len(set(batch.seeds)) == 4  # the image that comes twice is augmented twice
    assert all(target.masks is not None and target.has_mask.all() for target in batch.targets)


def test_mixed_shows_all_images_and_opens_masks_inside_the_budget(root: Path, without_masks: Path) -> None:
    data = build(root)
    data.setup("fit")
    seen = [batch for batches in epochs(data, 5) for batch in batches]
    assert len(set(ids(seen))) == 10
    for batch in seen:
        for image_id, target in zip(batch.image_ids, batch.targets, strict=True):
            assert (target.masks is not None) == (image_id in data.mask_ids)
    garbage = build(without_masks, mask_budget=0)  # garbage is not even opened
    assert all(target.masks is None for batch in epochs(garbage, 1)[0] for target in batch.targets)
    # but inside the budget it is: what cannot be read is a missing mask, and its box stays
    opened = build(without_masks, supervision="masks", augmentation="none")
    targets = epochs(opened, 1)[0][0].targets
    assert all(len(target.boxes) and not target.has_mask.any() for target in targets)


def test_split_seed_and_shuffle_seed_are_two(root: Path) -> None:
    first, reshuffled, redrawn = build(root), build(root, seed=1), build(root, split_seed=1)
    assert first.mask_ids == reshuffled.mask_ids != redrawn.mask_ids
    orders = [ids(epochs(data, 1)[0]) for data in (first, reshuffled, redrawn)]
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_split_is_written_and_read(root: Path, tmp_path: Path) -> None:
    data = build(root, split_seed=4)
    data.write_split(tmp_path / "split.json")
    again = build(root, split_file=str(tmp_path / "split.json"))
    assert again.mask_ids == data.mask_ids
    other = write_synthetic(tmp_path / "other", 1, 1, size=SIDE)
    with pytest.raises(DataError, match=r"split\.json: \d images of the split are not among the training images"):
        build(other, split_file=str(tmp_path / "split.json")).setup()


@pytest.mark.parametrize(("samples_per_epoch", "batches"), [(None, 2), (4, 1), (24, 6)])
def test_length_of_an_epoch(root: Path, samples_per_epoch: int | None, batches: int) -> None:
    data = build(root, samples_per_epoch=samples_per_epoch)
    loader = data.train_dataloader()
    assert len(loader) == len(list(loader)) == batches
    assert all(len(batch) == 4 for batch in loader)


def test_same_batches_for_any_number_of_workers(root: Path) -> None:
    alone, workers = epochs(build(root), 2), epochs(build(root, num_workers=2), 2)
    for one, two in zip([*alone[0], *alone[1]], [*workers[0], *workers[1]], strict=True):
        assert one.image_ids == two.image_ids
        assert one.seeds == two.seeds
        assert torch.equal(one.images, two.images)
    assert ids(alone[0]) != ids(alone[1])


def test_loading_leaves_the_global_generators_alone(root: Path) -> None:
    state = torch.get_rng_state()
    list(build(root, num_workers=1).train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_shows_everything_once(root: Path) -> None:
    data = build(root, image_size=(32, 48), batch_size=2, supervision="boxes")
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [2, 1]
        records = data.opened().dataset.val.records
        assert ids(batches) == [record.image_id for record in records]
        targets = [target for batch in batches for target in batch.targets]
        for target, record in zip(targets, records, strict=True):
            assert len(target.labels) == len(record.objects)
            assert target.truth is not None
            assert target.truth.semantic.shape == record.size
            assert {item.label for item in record.objects} <= set(target.truth.semantic.unique().tolist())
            assert target.masks is not None
            assert target.masks.shape[1:] == (32, 48)


class Tiny(LightningModule):
    """Module that records its batches and trains a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3))
        self.seen: list[tuple[int, str, int]] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen += [(self.current_epoch, *pair) for pair in zip(batch.image_ids, batch.seeds, strict=True)]
        return ((batch.images.mean(dim=(0, 2, 3)) - self.mean) ** 2).sum()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.log("val/pixels", batch.images.mean(), batch_size=len(batch))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip


# Lightning recommends more workers than these machines have cores
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
# Lightning 2.6.6 looks at torch's pytrees in a way that newer versions of torch warn about
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_lightning_trains_on_it(root: Path, trainer: Trainer) -> None:
    data, task = build(root), Tiny()
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    expected = [
        (epoch, *pair)
        for epoch, batches in enumerate(epochs(build(root), 2))
        for batch in batches
        for pair in zip(batch.image_ids, batch.seeds, strict=True)
    ]
    assert task.seen == expected  # the epoch that Lightning counts is the epoch that is drawn
    assert task.mean.abs().sum() > 0


def test_another_training_starts_from_the_first_draw(root: Path) -> None:
    data = build(root)
    data.load_state_dict({"batches": 5, "draws": 40})  # of one with batches of another size
    data.setup("fit")
    assert data.state_dict()["draws"] == 0


def test_command_line_and_links(root: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MixedSupervisionDataModule, "data")
    arguments = [f"--data.data_root={root}", "--data.image_size=[48, 64]", "--data.mask_budget=5/class"]
    parsed = parser.parse_args([*arguments, "--data.supervision=masks"])
    data = MixedSupervisionDataModule(**parsed.data.as_dict())
    assert data.image_size == (48, 64)
    # read before setup(), as a link to the model's num_classes does
    assert data.num_classes == len(data.class_names)
    assert data.class_names[0] == "background"
    assert parser.parse_args([*arguments[:1], "--data.image_size=96", "--data.mask_budget=7"]).data.image_size == 96


def test_options_that_make_no_sense(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="samples_per_epoch=3 is less than batch_size=4"):
        build(root, samples_per_epoch=3)
    with pytest.raises(ConfigError, match="supervision is 'some'"):
        build(root, supervision="some")
    with pytest.raises(UnknownNameError, match="no augmentation is called 'strong'"):
        build(root, augmentation="strong")
    with pytest.raises(BudgetError):
        build(root, mask_budget=11).setup()
    with pytest.raises(DataError, match="no training image is left"):
        build(root, supervision="masks", mask_budget=0).train_dataloader()
    with pytest.raises(DataError, match="does not exist"):
        build(tmp_path / "nowhere").setup()


def test_a_budget_that_some_classes_cannot_meet_is_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build(root, mask_budget="10/class").setup()
    assert "images with masks, the budget '10/class' asks for 10 of each class" in caplog.text


@pytest.mark.shared
def test_photographs(shared: Path) -> None:
    folder = shared / "data" / "voc12_animals"
    data = build(folder, image_size=160, mask_budget="2/class", augmentation="ssd", samples_per_epoch=4)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 160, 160)
    masked = build(folder, image_size=160, mask_budget="2/class", supervision="masks", augmentation="segment")
    for target in next(iter(masked.train_dataloader())).targets:
        assert target.masks is not None
        assert target.masks.any(dim=(1, 2)).equal(target.has_mask)
    target = next(iter(data.val_dataloader())).targets[0]
    assert target.truth is not None
    assert target.truth.semantic.any()
