"""One stage of training in a folder of its own: started, continued where it stopped, or recognised as done.

A stage's folder holds `last.ckpt` while it runs and `final.ckpt` once it is complete; both are written atomically.
"""

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger

from dasnet_lightning.callbacks import AtomicCheckpointIO, BoxAPGuard, ProgressLines, Throughput, ValidationTime
from dasnet_lightning.cli.console import say
from dasnet_lightning.files import write_json
from dasnet_lightning.tasks.checkpoints import load_checkpoint, read_checkpoint
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.segmentation import SegmentationTask

Task = DetectionTask | SegmentationTask

FINAL = "final.ckpt"
GRADIENT_CLIP = 10.0  # the first steps of a detector are far larger than all later ones


@dataclass(frozen=True)
class TrainerSettings:
    """What all stages of a run share: hardware, precision, logging."""

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    logger: str = "csv"
    project: str = "dasnet"


@dataclass(frozen=True)
class Stage:
    """One training: its name for people, its folder, its length in steps, and how many times it validates."""

    name: str
    folder: Path
    steps: int
    validations: int = 4

    @property
    def final(self) -> Path:
        return self.folder / FINAL

    @property
    def metrics(self) -> Path:
        """The validation figures of the final checkpoint."""
        return self.folder / "metrics.json"

    @property
    def interval(self) -> int:
        """Steps between two validations; beyond the end where there are none."""
        return max(1, self.steps // self.validations) if self.validations else self.steps + 1


def run_stage(stage: Stage, task: Task, data: L.LightningDataModule, settings: TrainerSettings) -> Path:
    """Train to the end of the stage, from its last checkpoint where there is one; returns the final checkpoint."""
    if stage.final.is_file():
        print(f"{stage.name}: done before, {stage.final}", file=sys.stderr)
        return stage.final
    last = stage.folder / "last.ckpt"
    resume = last if last.is_file() else None
    if resume is not None:
        read_checkpoint(resume)  # a damaged file is named before anything starts
        print(f"{stage.name}: continues from {resume}", file=sys.stderr)
    trainer = build_trainer(stage, settings)
    trainer.fit(task, data, ckpt_path=resume, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if settings.logger == "wandb":
        import wandb

        wandb.finish()  # the next stage is a run of its own
    trainer.save_checkpoint(stage.final)
    # the last validation measured the final weights; none ran where only the end was missing
    if task.figures and stage.steps % stage.interval == 0:
        write_json(stage.metrics, task.figures)
    last.unlink(missing_ok=True)
    return stage.final


def evaluate(
    stage: Stage,
    task: Task,
    data: L.LightningDataModule,
    checkpoint: Path,
    settings: TrainerSettings,
) -> Mapping[str, float]:
    """The validation figures of a checkpoint: from the end of its training, or measured once; then read from its folder."""
    if not stage.metrics.is_file():
        say(f"{stage.name}: evaluating {checkpoint}")
        load_checkpoint(task, checkpoint)
        build_evaluator(settings).validate(task, data, verbose=False)
        write_json(stage.metrics, task.figures)
    return json.loads(stage.metrics.read_text())


def build_trainer(stage: Stage, settings: TrainerSettings) -> L.Trainer:
    """The trainer of a stage, with its log below the stage's folder."""
    # without a monitored value the newest epoch is kept; `save_last` alone would save nothing before the end
    checkpoint = ModelCheckpoint(
        stage.folder, filename="last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True
    )
    progress: Callback = TQDMProgressBar() if sys.stderr.isatty() else ProgressLines(stage.name)
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=settings.strategy,
        precision=settings.precision,  # type: ignore[arg-type]
        max_steps=stage.steps,
        check_val_every_n_epoch=None,
        val_check_interval=stage.interval,
        num_sanity_val_steps=0,
        gradient_clip_val=GRADIENT_CLIP,
        log_every_n_steps=10,
        logger=build_loggers(stage, settings),
        callbacks=[checkpoint, Throughput(), ValidationTime(), BoxAPGuard(), progress],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def build_evaluator(settings: TrainerSettings) -> L.Trainer:
    """A trainer that only measures: on one device, so that no image is counted twice, and without a log."""
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=1,
        precision=settings.precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=sys.stderr.isatty(),
        use_distributed_sampler=False,
    )


def build_loggers(stage: Stage, settings: TrainerSettings) -> list[Logger]:
    """CSV files always; Weights & Biases beside them by option, imported only then."""
    loggers: list[Logger] = [CSVLogger(stage.folder, name="log")]
    if settings.logger == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(WandbLogger(name=stage.name, project=settings.project, save_dir=stage.folder))
    return loggers


def read_curves(folder: Path) -> Mapping[str, list[tuple[float, float]]]:
    """The logged values of a stage by name, as (step, value), joined over all its continuations."""
    curves: dict[str, dict[float, float]] = {}
    for path in sorted(folder.glob("log/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                step = float(row["step"])
                for name, value in row.items():
                    if name not in ("step", "epoch") and value:
                        curves.setdefault(name, {})[step] = float(value)
    return {name: sorted(values.items()) for name, values in curves.items()}
