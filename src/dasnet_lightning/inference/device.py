"""Choice of the device that a network runs on."""

import torch

from dasnet_lightning.errors import ConfigError


def choose_device(name: str) -> str:
    """Return the device to use; "auto" is the first GPU if there is one. Raises ConfigError if it cannot be used."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: cannot be used ({reason}); try --device cpu") from error
    return name
