"""`dasnet fit`, `dasnet validate` and `dasnet test`: one stage under full control of a YAML file, with LightningCLI."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

# LightningCLI finds tasks and callbacks by their short names among the subclasses that are imported.
from dasnet_lightning import callbacks, console
from dasnet_lightning.callbacks.resumable import CHECKPOINT
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.tasks.checkpoint_info import read_info
from dasnet_lightning.tasks.checkpoints import newest_good, read_checkpoint
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.semantic import SemanticTask
from dasnet_lightning.training.failures import explained_failures
from dasnet_lightning.training.hardware import quiet_lightning
from dasnet_lightning.training.launch import rejoin_after_restart

TASKS = {DetectionTask.__name__: "detection", SemanticTask.__name__: "semantic", InstanceTask.__name__: "instance"}
LIGHTNING_CKPT_PATHS = ("best", "last", "hpc")  # values of `ckpt_path` that are not files


class DasnetCLI(LightningCLI):
    """LightningCLI that links the classes of the data to the task and reads checkpoints of every format."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the classes from the data set."""
        for name in ("num_classes", "class_names", "category_ids", "image_range"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments; those of the task come from the checkpoint if `ckpt_path` names one."""
        super().parse_arguments(parser, args)
        command = self.config["subcommand"]
        arguments = read_task_arguments(self.config[command])
        if arguments is not None:
            model = {"class_path": self.config[command]["model"]["class_path"], "dict_kwargs": arguments}
            self.config = parser.parse_object({command: {"model": model}}, self.config)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: `parse_arguments` has read the checkpoint, whose older formats Lightning does not know."""

    def before_fit(self) -> None:
        """Resolve `--ckpt_path last`: Lightning would search the folder of the new training alone."""
        if self.config_init["fit"].get("ckpt_path") == "last":
            self.config_init["fit"]["ckpt_path"] = str(find_last(self.trainer))


def run_cli(command: str, arguments: Sequence[str]) -> int:
    """Run a command with LightningCLI and return the exit code 0; failures are exceptions.

    Args:
        command: "fit", "validate" or "test".
        arguments: what follows the command on the command line.
    """
    quiet_lightning()
    # lightning 2.6.6 calls jsonargparse by deprecated names, which users cannot change
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    rejoin_after_restart()
    # LightningCLI warns if arguments do not come from sys.argv, and Lightning starts further ranks with sys.argv
    argv, sys.argv = sys.argv, [sys.argv[0], command, *arguments]
    try:
        with explained_failures():
            DasnetCLI(
                L.LightningModule,
                MixedSupervisionDataModule,
                subclass_mode_model=True,
                seed_everything_default=0,
                save_config_kwargs={"overwrite": True},
                trainer_defaults=trainer_defaults(),
            )
    finally:
        sys.argv = argv
    return 0


def trainer_defaults() -> dict[str, Any]:
    """Return the defaults of the Trainer: a CSV log, atomic checkpoints, and trainings that can be resumed."""
    return {
        "log_every_n_steps": 10,
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "fit"}},
        "use_distributed_sampler": False,
        "plugins": [{"class_path": "AtomicCheckpointIO"}],
        "callbacks": [callbacks.StepSize(), callbacks.NaNGuard(), callbacks.Resumable()],
    }


def find_last(trainer: L.Trainer) -> Path:
    """Return the newest `last.ckpt` that a training with these settings left; the previous one if it is damaged.

    A logger numbers the folders of its trainings, so all of them are searched.

    Raises:
        CheckpointError: no training left such a file, or none can be read.
    """
    dirpath, logger = getattr(trainer.checkpoint_callback, "dirpath", None), trainer.logger
    if dirpath is not None:
        folder = Path(dirpath)
    elif logger is not None:
        folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name)
    else:
        folder = Path(trainer.default_root_dir) / "checkpoints"
    candidates = sorted(folder.rglob(CHECKPOINT), key=lambda path: path.stat().st_mtime_ns)
    path = newest_good(candidates[-1], console.error) if candidates else None
    if path is None:
        raise CheckpointError(f"--ckpt_path last: there is no {CHECKPOINT} below {folder}; leave it out to start anew")
    return path


def read_task_arguments(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the task's arguments from the checkpoint that `ckpt_path` names, None if it does not name a file.

    Args:
        config: parsed configuration of the command.

    Raises:
        CheckpointError: the file is not a checkpoint of the configured task.
    """
    path = config.get("ckpt_path")
    if not path or path in LIGHTNING_CKPT_PATHS or path.startswith("registry") or "://" in path:
        return None
    content = read_checkpoint(path)
    task, class_name = read_info(content, path).task, str(config["model"]["class_path"]).split(".")[-1]
    if class_name in TASKS and TASKS[class_name] != task:
        raise CheckpointError(f"{path}: holds a task '{task}', expected '{TASKS[class_name]}' for {class_name}")
    # keys with an underscore are LightningCLI's own
    return {name: value for name, value in content["hyper_parameters"].items() if not name.startswith("_")}
