"""Downloads of torchvision's weights, which fail within seconds and with one sentence if the host does not answer."""

import threading
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
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
