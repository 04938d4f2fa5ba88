"""`dasnet fit | validate | test`: one stage under full control of a YAML file, by LightningCLI."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dasnet_lightning.training.failures import explained_failures
from dasnet_lightning.training.hardware import quiet_lightning

TASKS = {"DetectionTask": "detection", "SemanticTask": "semantic", "InstanceTask": "instance"}  # by class


def run_cli(command: str, arguments: Sequence[str]) -> int:
    """Hand a command over to LightningCLI; tasks and data modules go by their short class names."""
    quiet_lightning()
    # lightning 2.6.6 calls jsonargparse by its older names, which is no concern of a user
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    import lightning as L
    from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

    # imported for their names: LightningCLI finds classes among the subclasses that exist
    from dasnet_lightning.callbacks import (  # noqa: F401
        AtomicCheckpointIO,
        BoxAPGuard,
        NaNGuard,
        ProgressLines,
        Resumable,
        StepSize,
        Throughput,
    )
    from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
    from dasnet_lightning.tasks.detection import DetectionTask  # noqa: F401
    from dasnet_lightning.tasks.instance import InstanceTask  # noqa: F401
    from dasnet_lightning.tasks.semantic import SemanticTask  # noqa: F401
    from dasnet_lightning.training.launch import rejoin_after_restart

    rejoin_after_restart()

    class DasnetCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            for name in ("num_classes", "class_names", "category_ids"):
                parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

        def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
            super().parse_arguments(parser, args)
            check_checkpoint(self.config[command])  # before LightningCLI opens it in its own way

        def before_fit(self) -> None:
            if self.config_init["fit"].get("ckpt_path") == "last":
                self.config_init["fit"]["ckpt_path"] = str(find_last(self.trainer))

    csv_logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "fit"}}
    # LightningCLI warns of arguments from elsewhere; for further devices Lightning runs the program of that name again
    given, sys.argv = sys.argv, [sys.argv[0], command, *arguments]
    try:
        with explained_failures():
            DasnetCLI(
                L.LightningModule,
                MixedSupervisionDataModule,
                subclass_mode_model=True,
                seed_everything_default=0,
                save_config_kwargs={"overwrite": True},
                trainer_defaults={
                    "log_every_n_steps": 10,
                    "logger": csv_logger,
                    "use_distributed_sampler": False,
                    "plugins": [{"class_path": "AtomicCheckpointIO"}],
                    "callbacks": [StepSize(), NaNGuard(), Resumable()],
                },
            )
    finally:
        sys.argv = given
    return 0


def find_last(trainer: Any) -> Path:
    """The newest `last.ckpt` that a training with these settings left; the one before it where that is damaged.

    Lightning looks in the folder of the new training alone, which a logger has just numbered. Raises CheckpointError.
    """
    from dasnet_lightning import console
    from dasnet_lightning.callbacks.resumable import CHECKPOINT
    from dasnet_lightning.errors import CheckpointError
    from dasnet_lightning.tasks.checkpoints import newest_good

    given, logger = getattr(trainer.checkpoint_callback, "dirpath", None), trainer.logger
    if given is not None:
        folder = Path(given)
    elif logger is not None:
        folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name)
    else:
        folder = Path(trainer.default_root_dir) / "checkpoints"
    left = sorted(folder.rglob(CHECKPOINT), key=lambda path: path.stat().st_mtime_ns)
    path = newest_good(left[-1], console.error) if left else None
    if path is None:
        raise CheckpointError(f"--ckpt_path last: there is no {CHECKPOINT} below {folder}; leave it out to start anew")
    return path


def check_checkpoint(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where `ckpt_path` of a parsed configuration names a file that its task cannot take.

    LightningCLI makes the task of what the file says, whatever class was asked for, and answers a bad file with a page.
    """
    from dasnet_lightning.errors import CheckpointError
    from dasnet_lightning.tasks.checkpoint_info import read_info
    from dasnet_lightning.tasks.checkpoints import read_checkpoint

    path = config.get("ckpt_path")
    if not path or path in ("best", "last", "hpc") or path.startswith("registry") or "://" in path:
        return
    found = read_info(read_checkpoint(path), path).task
    asked = str(config["model"]["class_path"]).split(".")[-1]
    if asked in TASKS and TASKS[asked] != found:
        raise CheckpointError(f"{path}: holds a task '{found}', expected '{TASKS[asked]}' for {asked}")
