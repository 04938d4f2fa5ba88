"""The loggers of a stage: CSV files always, W&B or TensorBoard by option."""

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.training.config import TrainerSettings
from dasnet_lightning.training.wandb_run import StageLogger, open_run


def check_logger(settings: TrainerSettings) -> None:
    """Raise ConfigError if the package of the logger is not installed."""
    if settings.logger == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise ConfigError(
            "logger tensorboard: the package tensorboard is not installed, expected it beside dasnet_lightning; "
            "run `python -m pip install tensorboard`, or choose csv"
        )


def build_loggers(folder: Path, settings: TrainerSettings) -> list[Logger]:
    """Return the loggers of a stage by its folder. Only rank zero has a W&B run."""
    loggers: list[Logger] = [CSVLogger(folder, name="log")]
    tracked = open_run()
    if settings.logger == "wandb" and tracked is not None:
        loggers.append(StageLogger(tracked, tracked.prefix_of(folder)))
    if settings.logger == "tensorboard":
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    return loggers
