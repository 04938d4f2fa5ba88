"""Downloads of torchvision's and timm's weights; if the host does not answer, they fail within seconds and one sentence."""

import threading
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from dasnet_lightning.errors import CheckpointError

CONNECT_SECONDS = 3.0


def download_state(weights: WeightsEnum) -> dict[str, Tensor]:
    """Return a state dict that torchvision publishes, from torch's hub folder or downloaded into it.

    Raises:
        CheckpointError: the file cannot be downloaded or is damaged.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(weights.url).path).name
    cached = path.is_file()
    try:
        if not cached:
            check_connection(weights.url)
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, HTTPException, RuntimeError, UnpicklingError, EOFError) as error:
        if cached:
            raise CheckpointError(f"{path}: damaged, delete the file so that torchvision downloads it again") from error
        raise CheckpointError(
            f"{path.name}: torchvision cannot download this file of weights ({_reason(error)}); put it into "
            f"{path.parent}, or start from random weights with --weights none"
        ) from error


def check_timm_weights(timm: Any, name: str) -> None:
    """Check within seconds that timm's weights can be loaded; the hub's own client would retry for a minute.

    Raises:
        OSError: they are not in the hub's cache, and the hub does not answer.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return
    hub = import_module("huggingface_hub")
    files = (hub.try_to_load_from_cache(config.hf_hub_id, file) for file in ("model.safetensors", "pytorch_model.bin"))
    if not any(isinstance(file, str) for file in files):
        check_connection(hub.constants.ENDPOINT)


def check_connection(url: str) -> None:
    """Check within seconds that a host answers; a name server that does not answer would block for longer.

    Raises:
        OSError: it does not.
    """
    errors: list[BaseException] = []
    answered = threading.Event()

    def connect() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=CONNECT_SECONDS).close()
        except HTTPError:  # an answer too
            pass
        except (OSError, HTTPException, ValueError) as error:
            errors.append(error)
        answered.set()

    threading.Thread(target=connect, daemon=True).start()
    if not answered.wait(CONNECT_SECONDS):
        raise TimeoutError(f"{urlsplit(url).hostname} does not answer")
    if errors:
        raise OSError(f"no connection to {urlsplit(url).hostname}") from errors[0]


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
