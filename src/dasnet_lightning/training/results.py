"""What a run returns and `results.json` holds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dasnet_lightning import __version__
from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.training.config import RunConfig

GIVEN_BOXES = "boxes"  # the registered detector for boxes that come from elsewhere


@dataclass(frozen=True)
class BudgetResult:
    """The result of stage two with one mask budget.

    Attributes:
        budget: its name, with ", joint" if the detector was trained too.
        mask_images: training images whose masks were used.
        mask_objects: masks that were used.
        metrics: validation metrics of the final checkpoint, in 0..1.
        checkpoint: path of the final checkpoint.
        errors: counts of the sorted errors by kind of boxes; empty for a stage that an earlier version measured.
    """

    budget: str
    mask_images: int
    mask_objects: int
    metrics: Mapping[str, float]
    checkpoint: str
    errors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        config: the options of the run.
        detector: name of the detector.
        class_names: background first.
        detection: box AP of the detector, and the score threshold of the evaluation.
        budgets: one result for each mask budget.
        accounting: counts of the labels by budget, class and use.
        val_set: the validation images.
        notes: sentences that a reader of the metrics must know, such as accepted changes of the data set.
    """

    config: RunConfig
    detector: str
    class_names: tuple[str, ...]
    detection: Mapping[str, float]
    budgets: tuple[BudgetResult, ...]
    accounting: Mapping[str, Mapping[str, Mapping[str, int]]]
    val_set: SegmentationDataset
    notes: tuple[str, ...] = ()

    @property
    def detects(self) -> bool:
        """Whether the detector finds boxes; `boxes` does not, so nothing is reported with detected boxes."""
        return self.detector != GIVEN_BOXES

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.folder

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the images, as `results.json` holds it."""
        return {
            "version": __version__,
            "config": asdict(self.config),
            "detector": self.detector,
            "class_names": self.class_names,
            "detection": self.detection,
            "budgets": [asdict(item) for item in self.budgets],
            "accounting": self.accounting,
            "notes": self.notes,
        }
