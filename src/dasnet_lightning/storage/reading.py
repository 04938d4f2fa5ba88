"""Reading files of torch's as data: what is damaged, foreign or would run code is named in one sentence.

`torch.load` here is the only one of the library, and its own messages, which advise to switch its safe loading off, end
here.
"""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.storage.checksum import Seal, check_seal
from dasnet_lightning.storage.file_kinds import describe_kind

SEALED = "dasnet_lightning_sealed"  # in the content: this file was written with a checksum
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_CHANGED = "damaged: its checksum does not match, at least one byte has changed since it was written"


def read_tensors(path: str | Path, what: str = "checkpoint") -> Any:
    """Read a file that `torch.save` wrote: tensors and plain values, nothing that runs. Raises CheckpointError.

    what: the word for it in messages. The checksum is verified, or the sums of the zip archive where there is none.
    """
    path = Path(path)
    wrong = find_damage(path, what)
    if wrong is not None:
        raise CheckpointError(f"{path}: {wrong}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write; they are refused, or data
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_refusal(str(error), what)}") from error
    except Exception as error:  # bytes from anywhere: their unpickling may raise whatever there is
        message = f"damaged or no {what} ({type(error).__name__}: {_first_line(error)})"
        raise CheckpointError(f"{path}: {message}") from error
    if isinstance(content, Mapping) and content.get(SEALED) and check_seal(path) is Seal.ABSENT:
        raise CheckpointError(f"{path}: damaged or truncated: it was written with a checksum, which is gone")
    return content


def read_safetensors(path: str | Path, what: str = "checkpoint") -> dict[str, Tensor]:
    """Read a file of safetensors, which can hold nothing but tensors. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such {what}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        kind = describe_kind(path)
        found = f"no {what}, it is {kind}" if "safetensors" not in kind else "truncated or damaged"
        raise CheckpointError(f"{path}: {found} ({_first_line(error)})") from error


def find_damage(path: Path, what: str = "checkpoint") -> str | None:
    """What is wrong with the bytes of a file of torch's, before any of them is believed; None where nothing is."""
    if path.is_dir():
        return f"is a folder, expected a {what} file"
    if not path.is_file():
        return f"no such {what}"
    if not os.access(path, os.R_OK):
        return f"this {what} may not be read, its permissions forbid it"
    seal = check_seal(path)
    if seal is not Seal.ABSENT:
        return None if seal is Seal.INTACT else _CHANGED
    with path.open("rb") as file:
        head = file.read(len(_ZIP))
    if head == _ZIP:
        return _find_damage_in_zip(path, what)
    return None if head.startswith(_PICKLE) else f"no {what}, it is {describe_kind(path)}"


def _find_damage_in_zip(path: Path, what: str) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if not any(member.filename.endswith("data.pkl") for member in members):
                return f"no {what}, it is a zip archive with something else in it"
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                return "refused: its archive is compressed, which torch never does; a small file could unpack to a huge one"
            if any(member.filename.endswith("constants.pkl") for member in members):
                return f"refused: it is a TorchScript program, expected a {what} of tensors"
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        return f"truncated or damaged, its archive cannot be read to the end ({_first_line(error)})"
    return None if bad is None else f"damaged: the bytes of its part '{bad}' have changed since they were written"


def _refusal(message: str, what: str) -> str:
    """The reason for a refusal, from torch's page of advice."""
    asked = re.search(r"GLOBAL ([\w.]+)", message)
    rule = f"a {what} is read as tensors and plain values alone"
    if asked is None:
        return f"refused: it is damaged, or holds more than data ({rule})"
    return f"refused: reading it would run code, '{asked.group(1)}' ({rule})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
