"""The options of a run, one definition for `dasnet train` and for `dasnet_lightning.train`, and the file that keeps them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.training.hardware import default_precision, default_workers
from dasnet_lightning.training.provenance import describe_start

STAGE_TWO_AUGMENTATION = "segment"


def option(default: Any, help: str, *, flag: str | None = None, metavar: str | None = None) -> Any:
    """Return a dataclass field that the command line shows too.

    Args:
        default: the default; a dict is copied for each instance.
        help: the help text.
        flag: the name on the command line; None for the field's own name.
        metavar: the placeholder of the value in the help.
    """
    metadata = {"help": help, "flag": flag, "metavar": metavar}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainerSettings:
    """Hardware, precision, logging and checkpoints: the same for all stages of a run. Free to change on resuming."""

    accelerator: str = option("auto", "cpu, cuda, ...")
    devices: int = option(1, "processes, each with a batch of its own")
    strategy: str = option("auto", "ddp for several devices")
    num_nodes: int = option(1, "machines; torchrun sets it")
    precision: str | None = option(None, "32-true, bf16-mixed, ... (default: the fastest that the hardware supports)")
    logger: Literal["csv", "wandb", "tensorboard"] = option(
        "csv", "wandb or tensorboard: log there in addition to the CSV files"
    )
    project: str | None = option(None, "W&B project (default: WANDB_PROJECT, else dasnet)")
    log_checkpoint: bool = option(False, "log the final checkpoints to W&B as artifacts")
    scale_lr: Literal["none", "linear"] = option(
        "none", "linear: multiply the learning rates by the number of processes"
    )
    checkpoint_every: int = option(100, "steps between checkpoints", metavar="N")
    deterministic: bool = option(False, "bit-identical results on a GPU too, slower")

    def resolve(self) -> "TrainerSettings":
        """Fill in what the machine decides: the precision, and under torchrun the processes."""
        settings = replace(self, precision=self.precision or default_precision(self.accelerator))
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return settings
        return replace(
            settings,
            devices=int(os.environ["LOCAL_WORLD_SIZE"]),
            num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
            strategy="ddp" if self.strategy == "auto" else self.strategy,
        )


@dataclass(frozen=True)
class RunConfig:
    """All options of a run. The run folder keeps them, and a continued run must have the same."""

    data: str
    out: str = option("", "run folder (default: runs/DATA-BUDGETS)", metavar="DIR")
    task: Literal["semantic", "instance"] = option(
        "instance", "instance: a mask for each object, and a class map; semantic: a class map"
    )
    mask_budgets: tuple[str, ...] = option(
        ("all",),
        "masks to use: N images, N/class, seg100, seg200, seg500, all; several budgets share one detector",
        flag="mask-budget",
        metavar="N",
    )
    detector: str = option("ssd320_vgg16", "name of a registered detector")
    detector_options: Mapping[str, Any] = option(
        {}, "option of the detector's builder, such as frozen_blocks=7; repeatable", flag="detector-option"
    )
    weights: str = option(
        "auto",
        "initial weights of the detector: coco, imagenet, none or a file (default: auto, the first of these that is published)",
        metavar="W",
    )
    backbone_weights: str | None = option(
        None, "instead of --weights: torchvision's name of weights, or a file", metavar="W"
    )
    detector_checkpoint: str | None = option(None, "trained detector; skips stage one", metavar="FILE")
    decoder: str = option("", "zoom, light or paper (default: zoom)")
    decoder_options: Mapping[str, Any] = option(
        {}, "option of the decoder's builder, such as grid=24; repeatable", flag="decoder-option"
    )
    soft_attention: float = option(
        0.0, "0 to 1: decode twice, the second time with features weighted by the first prediction", metavar="A"
    )
    image_size: int = option(0, "side of the network input (default: the detector's)", metavar="PX")
    detector_steps: int = option(
        0,
        "optimizer steps of stage one (default: 40 epochs, at least 9,600 images; from COCO weights 4 epochs, at least 1,600)",
        metavar="N",
    )
    steps: int = option(0, "optimizer steps of stage two (default: 1500)", metavar="N")
    joint_steps: int = option(0, "fine-tune detector and decoder jointly for N steps after stage two", metavar="N")
    detector_batch_size: int = option(16, "images per batch and process in stage one", metavar="B")
    batch_size: int = option(8, "images per batch and process in stage two", metavar="B")
    detector_augmentation: Literal["ssd", "segment", "flip", "d4", "none"] = option(
        "ssd",
        "of stage one: ssd zooms out up to 4 times, segment up to 2 (for short training), d4 flips and turns images that "
        "have no upward direction",
    )
    detector_lr: float | None = option(
        None,
        "learning rate of stage one (default: 1e-4 from COCO weights, 2e-4 for VGG, ResNet and transformers, else 1e-3)",
    )
    detector_ema: float | None = option(
        None, "decay of the average of stage one's weights that is validated and kept, 0 for none (default: 0)"
    )
    held_out: float | None = option(
        None, "share of the training images that only choose the score threshold (default: 0.1; 0 uses trained images)"
    )
    lr: float | None = option(None, "learning rate of stage two (default: 2e-3 for zoom, else 1e-3)")
    box_jitter: float = option(
        0.15, "zoom is trained on boxes half of which are moved by up to this share of a side", metavar="S"
    )
    score_threshold: float = option(
        0.0,
        "detections to segment in the evaluation (default: the best for class maps of boxes on held-out images)",
        metavar="S",
    )
    seed: int = option(0, "initial weights, order of the images, augmentation")
    split_seed: int = option(0, "selects the images whose masks are used")
    num_workers: int | None = option(None, "loader processes (default: half of the processors, at most 8)")
    allow_missing: bool = option(False, "skip images whose file does not exist")
    fix: Literal["error", "drop"] = option("error", "what to do with unusable boxes")
    crowd: Literal["ignore", "object"] = option(
        "ignore", "crowd and difficult labels: ignore neither trains nor evaluates them, object treats them as others"
    )
    use_model_masks: bool = option(False, "train masks that a model made too, as pseudo-labels outside the budget")
    accept_changes: bool = option(False, "continue a run although its data set changed since it began")
    feature_cache: str | None = option(
        None, "keep the frozen detector's features of the validation images there, for all budgets", metavar="DIR"
    )
    feature_cache_gb: float = option(10.0, "size limit of the feature cache", metavar="N")
    trainer: TrainerSettings = field(default_factory=TrainerSettings)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out)

    def resolve(self) -> "RunConfig":
        """Fill in the defaults that depend on the data set, the detector and the machine."""
        decoder = self.decoder or self._default("decoder", "zoom")
        return replace(
            self,
            out=self.out or default_folder(self),
            decoder=decoder,
            detector_lr=self._default("detector_lr", None) if self.detector_lr is None else self.detector_lr,
            detector_ema=self._default("detector_ema", 0.0) if self.detector_ema is None else self.detector_ema,
            held_out=self._default("held_out", 0.1) if self.held_out is None else self.held_out,
            lr=default_lr(decoder) if self.lr is None else self.lr,
            num_workers=default_workers() if self.num_workers is None else self.num_workers,
            trainer=self.trainer.resolve(),
        )

    def _default(self, name: str, new: Any) -> Any:
        """Return what an earlier start of the run used for an option that is not given; a default for a new run."""
        saved = read_run_file(replace(self, out=self.out or default_folder(self)))
        return saved.get(name, ADDED_LATER.get(name)) if saved else new


def default_detector_lr(detector: str, starts_trained: bool = False) -> float:
    """Return AdamW's learning rate; deep pretrained backbones without trainable normalization need a small one.

    Trained predictors get a smaller one, so that their first steps do not undo what they know.
    """
    if starts_trained:
        return 1e-4
    return 2e-4 if any(name in detector for name in ("vgg", "resnet", "transformers")) else 1e-3


def default_lr(decoder: str) -> float:
    """Return AdamW's learning rate of stage two."""
    return 2e-3 if decoder == "zoom" else 1e-3


def default_folder(config: RunConfig) -> str:
    """Return a run folder of its own for each data set, budgets and split seed; under `wandb agent` for each run."""
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if sweep and run:
        return str(Path("runs") / f"sweep-{sweep}" / run)
    name = "-".join([Path(config.data).resolve().stem, *(item.replace("/", "-per-") for item in config.mask_budgets)])
    return str(Path("runs") / (f"{name}-split{config.split_seed}" if config.split_seed else name))


# what earlier runs did
ADDED_LATER: dict[str, Any] = {"crowd": "ignore", "decoder_options": {}, "detector_ema": 0.0, "held_out": 0.0} | {
    "use_model_masks": False
}
# where and how fast a run computes, not what
FREE_TO_CHANGE = ("out", "accept_changes", "num_workers", "feature_cache", "feature_cache_gb", "trainer")


def check_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that `run.json` keeps.

    Raises:
        ConfigError: if a setting differs. Another version of the library or of torch is not a setting.
    """
    settings = {key: value for key, value in asdict(config).items() if key not in FREE_TO_CHANGE}
    settings = json.loads(json.dumps(settings))
    before = ADDED_LATER | read_run_file(config)
    changed = [key for key in settings if before.get(key, settings[key]) != settings[key]]
    if changed and run_file(config).is_file():
        differences = ", ".join(f"{key} was {before.get(key)!r} and is {settings[key]!r}" for key in changed)
        raise ConfigError(f"{config.folder}: holds a run with other settings ({differences}); choose another --out")
    return settings


def claim_folder(config: RunConfig, **records: Any) -> None:
    """Write the settings, further records of the run by key, and the provenance of this start; other keys stay.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    before = read_run_file(config)
    provenance = [*before.get("provenance", []), describe_start()]
    write_json(run_file(config), before | check_settings(config) | records | {"provenance": provenance})


def run_file(config: RunConfig) -> Path:
    """Return the file that keeps the settings and the records of a run."""
    return config.folder / "run.json"


def read_run_file(config: RunConfig) -> dict[str, Any]:
    """Return the content of `run.json`, empty if the folder does not hold a run."""
    path = run_file(config)
    return json.loads(path.read_text()) if path.is_file() else {}
