"""What a file is that should have been another: from its first bytes, or from what was read from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

_BEGINNINGS = (
    ((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*"), "an image"),
    ((b"RIFF",), "an image, a sound or a film"),
    ((b"\x89HDF",), "an HDF5 file, as Keras writes them"),
    ((b"\x93NUMPY",), "an array of numpy"),
    ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!"), "a compressed file or archive, unpack it first"),
    ((b"GGUF",), "a GGUF file"),
    ((b"%PDF",), "a PDF document"),
    ((b"\x7fELF", b"MZ"), "a program"),
    ((b"version https://git-lfs",), "a Git LFS pointer, run 'git lfs pull'"),
)
_PAGES = (b"<!doctype html", b"<html", b"<head")
_ONNX = (b"\x08", b"\x12")  # protobuf: field 1 (the version) is a number, field 2 (the producer) text


def describe_kind(path: Path) -> str:
    """A few words for "it is ...", of a file that begins neither as a zip archive nor as a pickle."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty (zero bytes)"
    if head.lstrip().lower().startswith(_PAGES):
        return "an HTML page, probably an error page that was saved instead of the file"
    for beginnings, kind in _BEGINNINGS:
        if head.startswith(beginnings):
            return kind
    if head[8:10] == b'{"':
        return "a safetensors file, which holds weights alone"
    if (head[:1], head[2:3]) == _ONNX:
        return "an ONNX model, which cannot be trained on"
    if not head.strip(b"\0"):
        return "nothing but zero bytes, as an interrupted copy leaves them"
    if head.isascii() and all(chr(byte).isprintable() or byte in b"\t\r\n" for byte in head):
        return f"text that begins with {head[:20].decode('ascii')!r}"
    return "damaged from its first byte on, or of no known kind"


def describe_content(content: Any) -> str:
    """A sentence about what was read from a file of torch's that is not what it should be."""
    if not isinstance(content, Mapping):
        return f"it holds a {type(content).__name__}"
    if "pytorch-lightning_version" in content:
        entries = list(content.get("state_dict") or ())[:1]
        return f"it is a Lightning checkpoint of another project{f', its model has {entries[0]!r}' if entries else ''}"
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return (
            f"it is a state dict alone ({len(content)} tensors, the first is {next(iter(content))!r}); weights of a backbone "
            "are given as backbone_weights"
        )
    return f"it holds {', '.join(map(repr, list(content)[:3])) or 'nothing'} and no state_dict with hyper_parameters"
