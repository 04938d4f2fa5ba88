"""Descriptions of files that are not checkpoints, from their first bytes or from their content."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

_SIGNATURES = (
    ((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*"), "an image"),
    ((b"RIFF",), "an image, audio or video file"),
    ((b"\x89HDF",), "an HDF5 file, such as Keras writes"),
    ((b"\x93NUMPY",), "a NumPy array"),
    ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!"), "a compressed file or archive, unpack it first"),
    ((b"GGUF",), "a GGUF file"),
    ((b"%PDF",), "a PDF document"),
    ((b"\x7fELF", b"MZ"), "an executable"),
    ((b"version https://git-lfs",), "a Git LFS pointer, run 'git lfs pull'"),
)
_HTML = (b"<!doctype html", b"<html", b"<head")
_ONNX = (b"\x08", b"\x12")  # protobuf tags: field 1 (version) is a number, field 2 (producer) a string


def describe_kind(path: Path) -> str:
    """Describe a file that starts neither as a zip archive nor as a pickle, to complete "it is ..."."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty (zero bytes)"
    if head.lstrip().lower().startswith(_HTML):
        return "an HTML page, probably an error page that was saved instead of the file"
    for signatures, description in _SIGNATURES:
        if head.startswith(signatures):
            return description
    if head[8:10] == b'{"':
        return "a safetensors file, which holds only weights"
    if (head[:1], head[2:3]) == _ONNX:
        return "an ONNX model, which cannot be trained further"
    if not head.strip(b"\0"):
        return "nothing but zero bytes, as after an interrupted copy"
    if head.isascii() and all(chr(byte).isprintable() or byte in b"\t\r\n" for byte in head):
        return f"text that begins with {head[:20].decode('ascii')!r}"
    return "damaged from its first byte on, or of an unknown kind"


def describe_content(content: Any) -> str:
    """Describe the content of a torch file that is not a checkpoint of the library."""
    if not isinstance(content, Mapping):
        return f"it holds a {type(content).__name__}"
    if "pytorch-lightning_version" in content:
        entries = list(content.get("state_dict") or ())[:1]
        return f"it is a Lightning checkpoint of another project{f', its model has {entries[0]!r}' if entries else ''}"
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return (
            f"it is a state dict alone ({len(content)} tensors, the first is {next(iter(content))!r}); pass the weights of a "
            "backbone as backbone_weights"
        )
    return f"it holds {', '.join(map(repr, list(content)[:3])) or 'nothing'} and no state_dict with hyper_parameters"
