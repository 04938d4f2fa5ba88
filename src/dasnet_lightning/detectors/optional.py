"""Import of optional libraries, which an extra of the package installs, at the moment a detector needs them."""

from importlib import import_module
from typing import Any

from dasnet_lightning.errors import ConfigError


def import_extra(module: str, extra: str) -> Any:
    """Import an optional module.

    Args:
        module: name of the module.
        extra: the extra of dasnet-lightning that installs it.

    Raises:
        ConfigError: the library is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ConfigError(
            f"{error.name} is not installed, install it with: pip install 'dasnet-lightning[{extra}]'"
        ) from error
