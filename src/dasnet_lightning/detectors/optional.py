"""Libraries that are installed by an extra of ours: imported when a detector needs them, missed with a clear sentence."""

from importlib import import_module
from typing import Any

from dasnet_lightning.errors import ConfigError


def import_extra(module: str, extra: str) -> Any:
    """The imported module. Raises ConfigError that names the extra where its library is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ConfigError(
            f"{error.name} is not installed, install it with: pip install 'dasnet-lightning[{extra}]'"
        ) from error
