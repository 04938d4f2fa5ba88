"""One stage of training in its own folder: started, continued, or recognized as done.

The folder holds `last.ckpt` and its predecessor while the stage runs, and `final.ckpt` once it is complete. All are written
atomically with a checksum.
"""

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

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
    WeightAverage,
)
from dasnet_lightning.callbacks.resumable import CHECKPOINT
from dasnet_lightning.distributed import run_on_rank_zero, world_size
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.storage.writing import previous_of, remove_leftovers
from dasnet_lightning.tasks.checkpoints import load_checkpoint, newest_good
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.training.config import TrainerSettings
from dasnet_lightning.training.loggers import build_loggers

Task = DetectionTask | SegmentationTask

FINAL = "final.ckpt"
GRADIENT_CLIP = 10.0  # the first gradients of a detector are far larger than all later ones


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        name: shown in messages.
        folder: of its checkpoints, logs and metrics.
        steps: optimizer steps.
        validations: how many times it validates; 0 for never.
        ema: decay of the average of the weights that is validated and kept; 0 for the last weights.
    """

    name: str
    folder: Path
    steps: int
    validations: int = 4
    ema: float = 0.0

    @property
    def final(self) -> Path:
        """The final checkpoint."""
        return self.folder / FINAL

    @property
    def metrics(self) -> Path:
        """The validation metrics of the final checkpoint."""
        return self.folder / "metrics.json"

    @property
    def errors(self) -> Path:
        """The sorted errors of the final checkpoint on the validation images."""
        return self.folder / "errors.json"

    @property
    def interval(self) -> int:
        """Steps between two validations; more than `steps` if the stage never validates."""
        return max(1, self.steps // self.validations) if self.validations else self.steps + 1


def scale_rate(rate: float, settings: TrainerSettings) -> float:
    """Return the learning rate, scaled by the number of processes if the settings say so."""
    return rate * world_size() if settings.scale_lr == "linear" else rate


def run_stage(stage: Stage, task: Task, data: L.LightningDataModule, settings: TrainerSettings) -> Path:
    """Train to the end of the stage, from its last checkpoint if there is one, and return the final checkpoint."""
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
        if trainer.interrupted:  # a second Ctrl-C, or one before the first step
            raise KeyboardInterrupt from stop
        raise
    trainer.save_checkpoint(stage.final)
    run_on_rank_zero(lambda: _close(stage, task))
    return stage.final


def _close(stage: Stage, task: Task) -> None:
    # if a validation ran on the final weights, keep its metrics
    if task.metrics and stage.steps % stage.interval == 0:
        _write_measured(stage, task)
    for path in (stage.folder / CHECKPOINT, previous_of(stage.folder / CHECKPOINT)):
        path.unlink(missing_ok=True)


def _write_measured(stage: Stage, task: Task) -> None:
    if isinstance(task, SegmentationTask):
        write_json(stage.errors, task.errors)
    write_json(stage.metrics, task.metrics)


def read_errors(stage: Stage) -> Mapping[str, Any]:
    """Return the sorted errors of a stage by kind of boxes, empty if an earlier version measured it."""
    return json.loads(stage.errors.read_text()) if stage.errors.is_file() else {}


def evaluate(
    stage: Stage,
    task: Task,
    data: L.LightningDataModule,
    checkpoint: Path,
    settings: TrainerSettings,
) -> Mapping[str, float]:
    """Return the validation metrics of a checkpoint, from the stage's folder or measured now."""
    if not run_on_rank_zero(stage.metrics.is_file):
        console.out(f"{stage.name}: evaluating {checkpoint}")
        load_checkpoint(task, checkpoint)
        build_evaluator(settings).validate(task, data, verbose=False)
        run_on_rank_zero(lambda: _write_measured(stage, task))
    return run_on_rank_zero(lambda: json.loads(stage.metrics.read_text()))


def build_trainer(stage: Stage, settings: TrainerSettings) -> L.Trainer:
    """Return the trainer of a stage, which logs to the stage's folder."""
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
        logger=build_loggers(stage.folder, settings),
        callbacks=build_callbacks(stage, settings),
        plugins=[AtomicCheckpointIO()],
        deterministic=settings.deterministic,
        enable_checkpointing=False,  # Resumable handles signals and the middle of an epoch
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        use_distributed_sampler=False,
        sync_batchnorm=joins_batchnorm(settings),
    )


def build_callbacks(stage: Stage, settings: TrainerSettings) -> list[Callback]:
    """Return the callbacks of a stage. Resumable comes last, so that checkpoints hold what the others did in a step."""
    averages = [WeightAverage(stage.ema)] if stage.ema else []
    return [
        Throughput(),
        ValidationTime(),
        BoxAPGuard(),
        StepSize(stage.name, settings.scale_lr),
        NaNGuard(str(stage.folder)),
        *averages,
        TQDMProgressBar() if sys.stderr.isatty() else ProgressLines(stage.name),
        Resumable(str(stage.folder), settings.checkpoint_every),
    ]


def build_evaluator(settings: TrainerSettings) -> L.Trainer:
    """Return a trainer for validation only, without logs; each image is measured on one rank."""
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
    """Whether BatchNorm is synchronized over the ranks, which torch supports on GPUs only."""
    return world_size() > 1 and settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def read_curves(folder: Path) -> Mapping[str, list[tuple[float, float]]]:
    """Return the logged values of a stage by name, as (step, value), joined over its continuations."""
    curves: dict[str, dict[float, float]] = {}
    for path in sorted(folder.glob("log/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                step = float(row["step"])
                for name, value in row.items():
                    if name not in ("step", "epoch") and value:
                        curves.setdefault(name, {})[step] = float(value)
    return {name: sorted(values.items()) for name, values in curves.items()}
