"""Files that are not valid checkpoints, with the error message for each."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save


class Runs:
    """Unpickled, it would make a folder: what an attacker's checkpoint does, as far as a test may."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def torch_bytes(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def make_bad_files(victim: Path) -> Mapping[str, tuple[bytes, str]]:
    """Return bytes and message pattern by name; `victim` would exist if code of a file ran."""
    good = torch_bytes({"a": torch.arange(1000.0)})
    picture, compressed, other = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10_000_000))
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    evil = {"state_dict": {}, "hyper_parameters": Runs(os.mkdir, str(victim))}
    sly = {"state_dict": {"a": torch.zeros(3)}, "hyper_parameters": Runs(exec, f"import os; os.mkdir({str(victim)!r})")}
    return {
        "empty": (b"", r"it is empty \(zero bytes\)"),
        "zeros": (bytes(3000), "it is nothing but zero bytes"),
        "page": (b"<!DOCTYPE html><html><body>404</body></html>", "it is an HTML page"),
        "text": (b"epoch,loss\n1,0.5\n", "it is text that begins with 'epoch,loss"),
        "image": (picture.getvalue(), "it is an image"),
        "safetensors": (save({"a": torch.zeros(3)}), "it is a safetensors file"),
        "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.0.0", "it is an ONNX model"),
        "noise": (bytes(range(7, 256)), "of an unknown kind"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        "zip": (other.getvalue(), "it is a zip archive with other content"),
        "bomb": (compressed.getvalue(), "refused: its archive is compressed"),
        "half": (good[: len(good) // 2], "truncated or damaged"),
        "short": (good[:-1], "truncated or damaged"),
        "first bytes": (good[:3], "of an unknown kind"),
        "flipped": (
            good[:2000] + b"\x55" + good[2001:],
            "damaged: the bytes of its part 'archive/data/0' have changed",
        ),
        "code": (torch_bytes(evil), r"refused: reading it would run code, '\w+\.mkdir'"),
        "sly code": (torch_bytes(sly), r"refused: reading it would run code, '.*exec'"),
        "system": (
            torch_bytes([Runs(os.system, f"mkdir {victim}")]),
            r"refused: reading it would run code, '\w+\.system'",
        ),
        "legacy code": (
            torch_bytes(evil, _use_new_zipfile_serialization=False),
            r"refused: reading it would run code, '\w+\.mkdir'",
        ),
        "bare pickle": (pickle.dumps(evil, protocol=4), "refused|damaged or not a checkpoint"),
        "module": (
            torch_bytes(torch.nn.Linear(2, 2)),
            "refused: reading it would run code, 'torch.nn.modules.linear.Linear'",
        ),
        "cut legacy": (
            torch_bytes({"a": torch.arange(1000.0)}, _use_new_zipfile_serialization=False)[:900],
            "damaged or not a checkpoint|refused: it is damaged",
        ),
    }
