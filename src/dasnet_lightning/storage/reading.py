"""Safe reading of torch and safetensors files; a file that is damaged, foreign or would run code raises one sentence.

This module holds the only `torch.load` of the library. It replaces torch's messages, which advise to disable safe
loading.
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

SEALED = "dasnet_lightning_sealed"  # key in the content of a file that was written with a checksum
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_CHANGED = "damaged: its checksum does not match, at least one byte has changed since it was written"


def read_tensors(path: str | Path, what: str = "checkpoint") -> Any:
    """Read tensors and plain values from a file of `torch.save`, without executing code.

    Args:
        path: the file. Its checksum is verified, or the checksums of its zip archive if it has none.
        what: the word for the file in messages.

    Raises:
        CheckpointError: if the file is missing, damaged or not such a file, or if loading it would run code.
    """
    path = Path(path)
    damage = find_damage(path, what)
    if damage is not None:
        raise CheckpointError(f"{path}: {damage}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles that it did not write
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_explain_refusal(str(error), what)}") from error
    except Exception as error:  # unpickling arbitrary bytes can raise any exception
        message = f"damaged or not a {what} ({type(error).__name__}: {_first_line(error)})"
        raise CheckpointError(f"{path}: {message}") from error
    if isinstance(content, Mapping) and content.get(SEALED) and check_seal(path) is Seal.ABSENT:
        raise CheckpointError(f"{path}: damaged or truncated, it was written with a checksum, which is gone")
    return content


def read_safetensors(path: str | Path, what: str = "checkpoint") -> dict[str, Tensor]:
    """Read a safetensors file, which holds only tensors; raise CheckpointError if it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such {what}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        kind = describe_kind(path)
        damage = f"not a {what}, it is {kind}" if "safetensors" not in kind else "truncated or damaged"
        raise CheckpointError(f"{path}: {damage} ({_first_line(error)})") from error


def find_damage(path: Path, what: str = "checkpoint") -> str | None:
    """Return what is wrong with a torch file before any of it is unpickled, or None if nothing is."""
    if path.is_dir():
        return f"is a folder, expected a {what} file"
    if not path.is_file():
        return f"no such {what}"
    if not os.access(path, os.R_OK):
        return f"no permission to read this {what}"
    seal = check_seal(path)
    if seal is not Seal.ABSENT:
        return None if seal is Seal.INTACT else _CHANGED
    with path.open("rb") as file:
        head = file.read(len(_ZIP))
    if head == _ZIP:
        return _find_damage_in_zip(path, what)
    return None if head.startswith(_PICKLE) else f"not a {what}, it is {describe_kind(path)}"


def _find_damage_in_zip(path: Path, what: str) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if not any(member.filename.endswith("data.pkl") for member in members):
                return f"not a {what}, it is a zip archive with other content"
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                return "refused: its archive is compressed, which torch never does, and could unpack to a huge size"
            if any(member.filename.endswith("constants.pkl") for member in members):
                return f"refused: it is a TorchScript program, expected a {what} of tensors"
            damaged_member = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        return f"truncated or damaged, its archive cannot be read to the end ({_first_line(error)})"
    if damaged_member is None:
        return None
    return f"damaged: the bytes of its part '{damaged_member}' have changed since they were written"


def _explain_refusal(message: str, what: str) -> str:
    """Return why torch refused a file, from the text of its error."""
    unsafe_global = re.search(r"GLOBAL ([\w.]+)", message)
    rule = f"a {what} is read as tensors and plain values only"
    if unsafe_global is None:
        return f"refused: it is damaged, or holds more than data ({rule})"
    return f"refused: reading it would run code, '{unsafe_global.group(1)}' ({rule})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
