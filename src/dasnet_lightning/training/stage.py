"""One stage of training in a folder of its own: started, continued where it stopped, or recognised as done.

A stage's folder holds `last.ckpt` and the one before it while it runs, and `final.ckpt` once it is complete; all are
written atomically and carry a checksum.
"""

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger

from dasnet_lightning import console
from dasnet_lightning.callbacks import (
    AtomicCheckpointIO,
    BoxAPGuard,
    NaNGuard,
    ProgressLines,
    Resumable,
    StepSize,
    Throughput,
    ValidationTime,
)
from dasnet_lightning.callbacks.resumable import CHECKPOINT
from dasnet_lightning.distributed import is_rank_zero, run_on_rank_zero, world_size
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.storage.writing import previous_of, remove_leftovers
from dasnet_lightning.tasks.checkpoints import load_checkpoint, newest_good
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.training.config import TrainerSettings

Task = DetectionTask | SegmentationTask

FINAL = "final.ckpt"
GRADIENT_CLIP = 10.0  # the first steps of a detector are far larger than all later ones


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


def scale_rate(rate: float, settings: TrainerSettings) -> float:
    """The learning rate for as many processes as there are."""
    return rate * world_size() if settings.scale_lr == "linear" else rate


def run_stage(stage: Stage, task: Task, data: L.LightningDataModule, settings: TrainerSettings) -> Path:
    """Train to the end of the stage, from its last checkpoint where there is one; returns the final checkpoint."""
    if run_on_rank_zero(stage.final.is_file):
        console.info(f"{stage.name}: done before, {stage.final}")
        return stage.final
    last = stage.folder / CHECKPOINT
    run_on_rank_zero(lambda: remove_leftovers(stage.folder))
    resume = run_on_rank_zero(lambda: newest_good(last, lambda line: console.error(f"{stage.name}: {line}")))
    if resume is not None:
        console.info(f"{stage.name}: continues from {resume}")
    trainer = build_trainer(stage, settings)
    try:
        trainer.fit(task, data, ckpt_path=resume, weights_only=True)
    except SystemExit as stop:
        if trainer.interrupted:  # what Lightning makes of a second Ctrl-C, or of one before the first step
            raise KeyboardInterrupt from stop
        raise
    if settings.logger == "wandb" and is_rank_zero():
        import wandb

        wandb.finish()  # the next stage is a run of its own
    trainer.save_checkpoint(stage.final)
    run_on_rank_zero(lambda: _close(stage, task.metrics))
    return stage.final


def _close(stage: Stage, figures: Mapping[str, float]) -> None:
    # the last validation measured the final weights; none ran where only the end was missing
    if figures and stage.steps % stage.interval == 0:
        write_json(stage.metrics, figures)
    for path in (stage.folder / CHECKPOINT, previous_of(stage.folder / CHECKPOINT)):
        path.unlink(missing_ok=True)


def evaluate(
    stage: Stage,
    task: Task,
    data: L.LightningDataModule,
    checkpoint: Path,
    settings: TrainerSettings,
) -> Mapping[str, float]:
    """The validation figures of a checkpoint: from the end of its training, or measured once; then read from its folder."""
    if not run_on_rank_zero(stage.metrics.is_file):
        console.out(f"{stage.name}: evaluating {checkpoint}")
        load_checkpoint(task, checkpoint)
        build_evaluator(settings).validate(task, data, verbose=False)
        run_on_rank_zero(lambda: write_json(stage.metrics, task.metrics))
    return run_on_rank_zero(lambda: json.loads(stage.metrics.read_text()))


def build_trainer(stage: Stage, settings: TrainerSettings) -> L.Trainer:
    """The trainer of a stage, with its log below the stage's folder."""
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=settings.precision,  # type: ignore[arg-type]
        max_steps=stage.steps,
        check_val_every_n_epoch=None,
        val_check_interval=stage.interval,
        num_sanity_val_steps=0,
        gradient_clip_val=GRADIENT_CLIP,
        log_every_n_steps=10,
        logger=build_loggers(stage, settings),
        callbacks=build_callbacks(stage, settings),
        plugins=[AtomicCheckpointIO()],
        deterministic=settings.deterministic,
        enable_checkpointing=False,  # Lightning's own, which knows neither signals nor the middle of an epoch
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        use_distributed_sampler=False,
        sync_batchnorm=joins_batchnorm(settings),
    )


def build_callbacks(stage: Stage, settings: TrainerSettings) -> list[Callback]:
    """What watches a stage. Resumable comes last: what the others did to a step is in its checkpoints."""
    return [
        Throughput(),
        ValidationTime(),
        BoxAPGuard(),
        StepSize(stage.name, settings.scale_lr),
        NaNGuard(str(stage.folder)),
        TQDMProgressBar() if sys.stderr.isatty() else ProgressLines(stage.name),
        Resumable(str(stage.folder), settings.checkpoint_every),
    ]


def build_evaluator(settings: TrainerSettings) -> L.Trainer:
    """A trainer that only measures, without a log; over several devices every image is measured on one of them."""
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=settings.precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=sys.stderr.isatty(),
        use_distributed_sampler=False,
    )


def joins_batchnorm(settings: TrainerSettings) -> bool:
    """Whether BatchNorm takes its statistics over the images of all processes: torch can on GPUs alone."""
    return world_size() > 1 and settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


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
