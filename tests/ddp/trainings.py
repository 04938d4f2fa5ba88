"""What the processes of the tests do: train and measure each task on made-up pictures, on as many devices as there are."""

import io
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dasnet_lightning.callbacks import BoxAPGuard
from dasnet_lightning.cli.main import main
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.detectors import DETECTORS
from dasnet_lightning.detectors.ssd.ssd_tiny import build_ssd_tiny
from dasnet_lightning.tasks.config import NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.tasks.semantic import SemanticTask
from dasnet_lightning.training.config import RunConfig, TrainerSettings
from dasnet_lightning.training.detector_stage import choose_threshold
from dasnet_lightning.training.launch import processes
from dasnet_lightning.training.stage import Stage
from dasnet_lightning.types import Batch

SIZE = 64
SGD = OptimizerConfig("sgd", lr=0.01, schedule="constant", double_bias=False)
NUM_CLASSES = 7
DETECTIONS = 6  # in an image, for each is decoded; among the many of a detector that has learned nothing some are right
TINY = {"image_size": SIZE, "detections_per_image": DETECTIONS}
SUPERVISION = {"detection": "boxes", "semantic": "masks", "instance": "masks", "joint": "mixed"}


def build_ssd_plain(num_classes: int, backbone_weights: None = None) -> nn.Module:
    """ssd_tiny without BatchNorm: what it learns of an image does not depend on the others of its batch."""
    detector = build_ssd_tiny(num_classes, image_size=SIZE, detections_per_image=DETECTIONS)
    for block in [detector.backbone.stem, *(block for stage in detector.backbone.stages for block in stage)]:
        block[1] = nn.Identity()
    return detector


class Curves(Callback):
    """The values that were logged in each step, by name."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *ignored: Any) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith("train/"):
                self.values.setdefault(name, []).append(float(value))


def build_task(kind: str, detector: str, detector_options: dict[str, Any] | None = None) -> Any:
    DETECTORS._entries["ssd_plain"] = build_ssd_plain
    torch.manual_seed(0)
    if kind == "detection":
        return DetectionTask(NUM_CLASSES, detector=detector, detector_options=detector_options, optimizer=SGD)
    tasks = {"semantic": SemanticTask, "instance": InstanceTask, "joint": SemanticTask, "zoom": InstanceTask}
    return tasks[kind](
        NUM_CLASSES,
        network=NetworkConfig(detector, detector_options, "zoom" if kind == "zoom" else "light"),
        recipe=RecipeConfig(joint=kind == "joint"),
        optimizer=SGD,
    )


def build_trainer(folder: Path, steps: int = 1, **options: Any) -> L.Trainer:
    count = int(os.environ["PROCESSES"])
    return L.Trainer(
        accelerator="cpu",
        devices=count,
        strategy="ddp" if count > 1 else "auto",
        max_steps=steps,
        logger=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )


def open_data(root: Path, kind: str, batch_size: int) -> MixedSupervisionDataModule:
    return MixedSupervisionDataModule(
        str(root), SIZE, batch_size, supervision=SUPERVISION[kind], mask_budget="all", seed=3, samples_per_epoch=12
    )


def result_of(task: L.LightningModule, curves: Curves) -> dict[str, Any]:
    return {"weights": dict(task.state_dict()), "figures": dict(task.metrics), "curves": curves.values}


def train(kind: str, root: Path, batch_size: int, steps: int, detector: str) -> dict[str, Any]:
    """A whole training on files with augmentation, and the validation at its end."""
    options = TINY if detector == "ssd_tiny" else None
    task, curves, guard = build_task(kind, detector, options), Curves(), BoxAPGuard()
    before = {key: value.clone() for key, value in task.state_dict().items()}
    trainer = build_trainer(
        root, steps, callbacks=[curves, guard], val_check_interval=steps, check_val_every_n_epoch=None
    )
    trainer.fit(task, open_data(root, kind, batch_size))
    return result_of(task, curves) | {"before": before, "box_ap_before": guard.before}


def learn(kind: str, root: Path, shares: Sequence[Sequence[Batch]]) -> dict[str, Any]:
    """A training on the batches of this process's share, one a step, with plain stochastic gradient descent."""
    task, curves = build_task(kind, "ssd_plain"), Curves()
    share = shares[int(os.environ["LOCAL_RANK"])]
    build_trainer(root, len(share), callbacks=[curves]).fit(task, DataLoader(share, batch_size=None))
    return result_of(task, curves)


def measure(kinds: Sequence[str], root: Path, batch_size: int) -> dict[str, Mapping[str, float]]:
    """All figures of each task, from a validation by itself."""
    figures = {}
    for kind in kinds:
        task = build_task(kind, "ssd_tiny", detector_options={"image_size": SIZE} if kind == "detection" else TINY)
        if kind == "instance":
            with torch.no_grad():
                task.model.head.score.bias[0::2] += (
                    3  # nothing was learned: masks that fill their boxes are right at times
                )
        build_trainer(root).validate(task, open_data(root, kind, batch_size), verbose=False)
        figures[kind] = dict(task.metrics)
    return figures


def calibrate(root: Path, folder: Path) -> float:
    """The score threshold of a detector, found on the training images of all processes together."""
    task = build_task("detection", "ssd_tiny", detector_options={"image_size": SIZE})
    folder = folder / os.environ["PROCESSES"]
    folder.mkdir(exist_ok=True)
    data, settings = open_data(root, "detection", 2), TrainerSettings("cpu", int(os.environ["PROCESSES"]), "ddp")
    checkpoint = folder / f"{os.environ['LOCAL_RANK']}.ckpt"
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}, checkpoint)
    with processes(settings):
        config = RunConfig(str(root), str(folder), trainer=settings)
        return choose_threshold(Stage("stage one", folder, 1), task, data, checkpoint, config)


def command(arguments: Sequence[str]) -> dict[str, Any]:
    """A command of ours: its exit code and what it printed, as each process sees it."""
    printed, complained = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(complained):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return {"code": code, "printed": printed.getvalue(), "complained": complained.getvalue()}


def start_script(path: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a script that starts processes itself, as if nobody had: its error, and how many of its processes are left."""
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
        del os.environ[name]
    sys.argv = [path, *arguments]
    error = ""
    try:
        runpy.run_path(path)
    except ArithmeticError as raised:
        error = str(raised)
    line = subprocess.run(["pgrep", "-c", "-f", path], capture_output=True, text=True, check=False)
    return {"error": error, "alive": int(line.stdout)}


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return max(float((value.double() - other[key].double()).abs().max()) for key, value in one.items() if value.numel())
