"""Lightning data module for boxes on every image and masks on a few; the only module of `data` that imports Lightning.

There are two seeds: `split_seed` draws the images whose masks may be used, `seed` the order and the augmentation.
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from dasnet_lightning import distributed
from dasnet_lightning.data.augmentation.transforms import build_transform
from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.data.image_folder import prediction_set
from dasnet_lightning.data.loader import ResumableLoader, Sample, collate, start_worker
from dasnet_lightning.data.mask_check import image_ids
from dasnet_lightning.data.pixels import announce_range
from dasnet_lightning.data.records import ImageRecord, Source
from dasnet_lightning.data.sampler import EpochSampler
from dasnet_lightning.data.sources.class_mapping import map_classes
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.data.splits import Split, check_same_split, describe_short, split_state, write_split
from dasnet_lightning.data.supervision import OpenedData, Supervision, choose_split, find_masked, training_records
from dasnet_lightning.data.validation_split import hold_out
from dasnet_lightning.errors import ConfigError, DataError

_logger = logging.getLogger(__name__)


class MixedSupervisionDataModule(LightningDataModule):
    """Data module with boxes on every image and masks inside a budget.

    Args:
        data_root: folder or file of the data set; its format is detected.
        image_size: side of the network input in pixels, or (height, width).
        batch_size: images per batch and process.
        num_workers: processes that load images; 0 loads them in the training process.
        supervision: "boxes" trains on all images and opens no mask; "masks" trains on the images inside the budget, with
            their masks; "mixed" trains on all images, with masks inside the budget.
        mask_budget: how many masks may be used: "all", a number of images, "5/class", or a name such as "seg100".
        split_seed: seed that draws the images inside the budget.
        seed: seed of the order of the images and of their augmentation.
        augmentation: "ssd", "segment", "flip", "d4" or "none" (see `data.augmentation.transforms`).
        split_file: read the split from this file instead of drawing it.
        samples_per_epoch: images drawn per epoch over all processes. None draws each image once, or one full batch if
            there are fewer images.
        allow_missing: leave out images whose file does not exist instead of refusing the data set.
        fix: "error" refuses a data set with unusable annotations, "drop" leaves them out.
        crowd: "ignore" or "object" (see `open_dataset`).
        predict_on: what `Trainer.predict` sees: "val", "test" or a folder of images.
        held_out: share of the training images that supervision "boxes" leaves out, to choose a score threshold on them.
    """

    def __init__(
        self,
        data_root: str,
        image_size: int | tuple[int, int] = 320,
        batch_size: int = 16,
        num_workers: int = 0,
        supervision: Supervision = "boxes",
        mask_budget: str | int = "all",
        split_seed: int = 0,
        seed: int = 0,
        augmentation: str = "ssd",
        split_file: str | None = None,
        samples_per_epoch: int | None = None,
        allow_missing: bool = False,
        fix: Literal["error", "drop"] = "error",
        crowd: Literal["ignore", "object"] = "ignore",
        held_out: float = 0.0,
        predict_on: str = "val",
    ) -> None:
        super().__init__()
        # Lightning refuses to log hyperparameters of the same name of both the model and the data module
        self.save_hyperparameters(logger=False)
        if supervision not in ("boxes", "masks", "mixed"):
            raise ConfigError(f"supervision is '{supervision}', expected 'boxes', 'masks' or 'mixed'")
        if samples_per_epoch is not None and samples_per_epoch < batch_size:
            raise ConfigError(f"samples_per_epoch={samples_per_epoch} is less than batch_size={batch_size}, raise it")
        self.data_root = Path(data_root)
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        self.batch_size, self.num_workers = batch_size, num_workers
        self.supervision, self.mask_budget, self.split_seed, self.seed = supervision, mask_budget, split_seed, seed
        self.split_file = None if split_file is None else Path(split_file)
        self.allow_missing, self.samples_per_epoch = allow_missing, samples_per_epoch
        self.fix, self.crowd = fix, crowd
        if not 0 <= held_out <= 0.5:
            raise ConfigError(f"held_out is {held_out}, expected 0 to 0.5")
        self.held_out, self.predict_on = held_out, predict_on
        self.train_transform = build_transform(augmentation, self.image_size)
        self.eval_transform = build_transform("none", self.image_size)
        self._opened: OpenedData | None = None
        self._resumed_from = (0, 0)  # batches and draws of the training that is resumed

    def setup(self, stage: str | None = None) -> None:
        """Open the data set and draw the split, both only once. Raises DataError or BudgetError."""
        if stage == "fit":
            self._resumed_from = (0, 0)  # Lightning loads the state of a checkpoint after this
        self.opened()

    def opened(self) -> OpenedData:
        """Return the data set and the split; opens them on the first call."""
        if self._opened is None:
            self.use(open_dataset(self.data_root, self.allow_missing, self.fix, self.crowd))
        assert self._opened is not None
        return self._opened

    def use(self, dataset: DataSet) -> None:
        """Use an open data set, so that several stages read its files once; the split is drawn again."""
        split = choose_split(dataset.train, self.supervision, self.mask_budget, self.split_seed, self.split_file)
        for text in [] if split is None else describe_short(split, dataset.train.class_names):
            _logger.warning("%s: %s", self.data_root, text)
        self._opened = OpenedData(dataset, split)
        announce_range(self.data_root, dataset.image_range)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label; `class_names[0]` is "background"."""
        return self.opened().dataset.train.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes with background."""
        return len(self.class_names)

    @property
    def category_ids(self) -> tuple[int | str, ...]:
        """The data set's own ids by label, entry 0 for the background, for exports; empty if it has none."""
        dataset = self.opened().dataset
        ids = {**dataset.val.category_ids, **dataset.train.category_ids}
        return tuple(ids.get(label, label) for label in range(self.num_classes)) if ids else ()

    @property
    def image_range(self) -> tuple[float, float] | None:
        """Values (low, high) that become 0 and 255 in images of more than 8 bits; None if there are none."""
        image_range = self.opened().dataset.image_range
        return None if image_range is None else (image_range.low, image_range.high)

    @property
    def split(self) -> Split | None:
        """Images inside the mask budget; None if the supervision is "boxes"."""
        return self.opened().split

    @property
    def mask_ids(self) -> frozenset[str]:
        """Ids of the training images whose masks may be opened: those of the budget, and those with masks by a model alone."""
        return frozenset() if self.split is None else find_masked(self.opened().dataset.train, self.split.image_ids)

    @cached_property
    def held_out_ids(self) -> frozenset[str]:
        """Ids of the training images that supervision "boxes" leaves out."""
        records = self.opened().dataset.train.records
        return hold_out(records, self.held_out) if self.supervision == "boxes" else frozenset()

    def write_split(self, path: str | Path) -> None:
        """Write the split to a file. Raises ConfigError if the supervision is "boxes", which has no split."""
        if self.split is None:
            raise ConfigError('supervision="boxes" has no split to write, use "masks" or "mixed"')
        write_split(self.split, Path(path))

    def train_set(self) -> SegmentationDataset:
        """Return the augmented training images of this supervision."""
        data, mask_ids = self.opened().dataset, self.mask_ids
        records = training_records(data.train, self.supervision, mask_ids, self.held_out_ids)
        if not records:
            raise DataError(
                f"{self.data_root}: no training image is left for supervision='{self.supervision}', "
                f"choose a larger mask_budget than '{self.mask_budget}' or another supervision"
            )
        return SegmentationDataset(
            data.train, records, mask_ids, self.train_transform, self.seed, image_range=data.image_range
        )

    def val_set(self) -> SegmentationDataset:
        """Return all validation images with all their masks, not augmented."""
        return self._with_truth(self.opened().dataset.val)

    def _with_truth(self, source: Source) -> SegmentationDataset:
        return self._unaugmented_set(source, source.records, image_ids(source), with_truth=True)

    def calibration_dataloader(self, count: int) -> DataLoader[Sample]:
        """Load at most `count` held-out images, or else training images: evenly spaced, not augmented, without masks."""
        source, held_out = self.opened().dataset.train, self.held_out_ids
        records = [record for record in source.records if not held_out or record.image_id in held_out]
        records = records[:: -(-len(records) // count)]
        dataset = self._unaugmented_set(source, records, frozenset())
        rank, world_size = self._rank_and_world_size()
        return self._loader(dataset, EpochSampler(len(dataset), self.seed, False, rank=rank, world_size=world_size))

    def train_dataloader(self) -> DataLoader[Sample]:
        """Load full batches only, in an order that depends only on the seed and on the draws taken before."""
        dataset, (rank, world_size) = self.train_set(), self._rank_and_world_size()
        draws = len(dataset) if self.samples_per_epoch is None else self.samples_per_epoch
        num_draws = max(1, draws // self._step_size()) * self._step_size()
        taken = None if self.trainer is None else self._draws_taken
        sampler = EpochSampler(len(dataset), self.seed, True, num_draws, rank=rank, world_size=world_size, taken=taken)
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Load every validation image exactly once over all processes, in order.

        A rank without a batch would skip the end of the loop, where metrics are reduced, and the others would wait for it.
        It gets the first image again, without ground truth: no mask is measured, and box metrics count an image id once.
        """
        return self._evaluation_loader(self.val_set())

    def _evaluation_loader(self, dataset: SegmentationDataset) -> DataLoader[Sample]:
        rank, world_size = self._rank_and_world_size()
        if rank >= len(dataset):
            dataset = self._unaugmented_set(dataset.source, dataset.records[:1], frozenset())
            rank, world_size = 0, 1
        return self._loader(dataset, EpochSampler(len(dataset), self.seed, False, rank=rank, world_size=world_size))

    def test_dataloader(self) -> DataLoader[Sample]:
        """Load the test split, with its labels matched by class name, or else the validation images."""
        test = self.opened().dataset.test
        if test is None:
            return self.val_dataloader()
        source, mismatch = map_classes(test, self.class_names, "the training split")
        if mismatch:
            _logger.warning("%s", mismatch)
        return self._evaluation_loader(self._with_truth(source))

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Load the images of `predict_on` in order, without masks and ground truth."""
        return self._evaluation_loader(prediction_set(self.opened().dataset, self.predict_on, self.eval_transform))

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream of draws and the split, for checkpoints."""
        return {"batches": self._batches_taken(), "draws": self._draws_taken(), "split": split_state(self.split)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint. Raises ConfigError if the training would continue with other masks."""
        if self.trainer is not None and self.trainer.state.fn == "fit" and "split" in state_dict:
            check_same_split(self.split, state_dict["split"], self.trainer.ckpt_path)
        self._resumed_from = (state_dict.get("batches", 0), state_dict.get("draws", 0))

    def _unaugmented_set(
        self, source: Source, records: Sequence[ImageRecord], mask_ids: frozenset[str], with_truth: bool = False
    ) -> SegmentationDataset:
        image_range = self.opened().dataset.image_range
        return SegmentationDataset(source, records, mask_ids, self.eval_transform, self.seed, with_truth, image_range)

    def _loader(self, dataset: SegmentationDataset, sampler: EpochSampler) -> DataLoader[Sample]:
        return ResumableLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(self.seed),  # the default draws from the global generator
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return distributed.rank(), distributed.world_size()
        return self.trainer.global_rank, self.trainer.world_size

    def _step_size(self) -> int:
        """Return the images of one step over all processes."""
        return self.batch_size * self._rank_and_world_size()[1]

    def _batches_taken(self) -> int:
        """Return the batches processed in all epochs, including those before the training was interrupted."""
        progress: Any = None if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress.total
        return 0 if progress is None else int(progress.processed)

    def _draws_taken(self) -> int:
        """Return the images drawn over all processes; a resumed training may have another batch size than before."""
        batches, draws = self._resumed_from
        return draws + (self._batches_taken() - batches) * self._step_size()
