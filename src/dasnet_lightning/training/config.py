"""What a run depends on and what it gave, and how both are kept in its folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dasnet_lightning import __version__
from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.training.provenance import describe_start
from dasnet_lightning.training.stage import TrainerSettings


@dataclass(frozen=True)
class RunConfig:
    """What a run depends on; the fields are the options of `dasnet train` and are explained there.

    detector_steps and steps of 0 mean: chosen from the number of images; score_threshold of 0: the best F1 on training
    images; joint_steps of 0: no joint training after stage two.
    """

    data: str
    out: str
    task: Literal["semantic", "instance"] = "semantic"
    mask_budgets: tuple[str, ...] = ("all",)
    detector: str = "ssd320_vgg16"
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    backbone_weights: str | None = None
    detector_checkpoint: str | None = None
    decoder: str = "light"
    soft_attention: float = 0.0
    image_size: int = 0
    detector_steps: int = 0
    steps: int = 0
    joint_steps: int = 0
    detector_batch_size: int = 16
    batch_size: int = 8
    detector_augmentation: str = "ssd"
    detector_lr: float = 1e-3
    lr: float = 1e-3
    score_threshold: float = 0.0
    seed: int = 0
    split_seed: int = 0
    num_workers: int = 0
    allow_missing: bool = False
    fix: Literal["error", "drop"] = "error"
    feature_cache: str | None = None
    feature_cache_gb: float = 10.0
    trainer: TrainerSettings = field(default_factory=TrainerSettings)

    @property
    def folder(self) -> Path:
        return Path(self.out)


# what may change between two starts of the same run: where and how fast, not what
FREE_TO_CHANGE = ("out", "num_workers", "feature_cache", "feature_cache_gb", "trainer")


@dataclass(frozen=True)
class BudgetResult:
    """What one mask budget gave: `metrics` are the validation figures of the task, in 0..1.

    budget: its name, with ", joint" where the detector learned too.
    """

    budget: str
    mask_images: int
    mask_objects: int
    metrics: Mapping[str, float]
    checkpoint: str


@dataclass(frozen=True)
class RunResult:
    """What a run gave; `detection` holds the box AP of the detector, `val_set` the images that were evaluated."""

    config: RunConfig
    detector: str
    class_names: tuple[str, ...]
    detection: Mapping[str, float]
    budgets: tuple[BudgetResult, ...]
    accounting: Mapping[str, Mapping[str, Mapping[str, int]]]
    val_set: SegmentationDataset

    def as_dict(self) -> dict[str, Any]:
        """All figures, as `results.json` holds them."""
        return {
            "version": __version__,
            "config": asdict(self.config),
            "detector": self.detector,
            "class_names": self.class_names,
            "detection": self.detection,
            "budgets": [asdict(item) for item in self.budgets],
            "accounting": self.accounting,
        }


def claim_folder(config: RunConfig) -> None:
    """Write the settings into `run.json`, or compare them with those of an earlier start, and add a line on this start.

    Raises:
        ConfigError: if a setting differs. Another version of the library or of torch is not a setting.
    """
    path = config.folder / "run.json"
    settings = {key: value for key, value in asdict(config).items() if key not in FREE_TO_CHANGE}
    settings = json.loads(json.dumps(settings))
    before = json.loads(path.read_text()) if path.is_file() else {}
    changed = [key for key in settings if before.get(key, settings[key]) != settings[key]]
    if changed:
        what = ", ".join(f"{key} was {before.get(key)!r} and is {settings[key]!r}" for key in changed)
        raise ConfigError(f"{config.folder}: holds a run with other settings ({what}); choose another --out")
    write_json(path, {**settings, "provenance": [*before.get("provenance", []), describe_start()]})
