"""What a frozen detector's features depend on, as one number: two detectors with the same fingerprint give the same ones."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None))

Stamp = tuple[tuple[int, int, torch.dtype], ...]


def fingerprint(detector: nn.Module) -> str:
    """A hash of the modules of a detector, their plain attributes, and all parameters and buffers in order.

    Buffers that no state dict holds count too (a detector's mean is one), and so does the source of every module's class
    where there is a file of it: a detector of one's own that is edited is another one.
    """
    digest = hashlib.sha256()
    for name, module in detector.named_modules():
        kind = type(module)
        plain = {key: value for key, value in sorted(vars(module).items()) if _is_plain(value)}
        digest.update(repr((name, kind.__module__, kind.__qualname__, module.extra_repr(), plain)).encode())
    for name, tensor in (*detector.named_parameters(), *detector.named_buffers()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(raw_bytes(tensor))
    for module_name, source in sorted(_sources(detector).items()):
        digest.update(repr((module_name, source)).encode())
    return digest.hexdigest()


def stamp(detector: nn.Module) -> Stamp | None:
    """What changes when the tensors of a detector are replaced, moved, or written into, read without reading them.

    None where that cannot be told: tensors made in inference mode count no writes.
    """
    tensors = [*detector.parameters(), *detector.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in the order of its axes, whatever its layout in memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | dict):  # an empty one is where a module keeps what it has not made yet
        parts = (*value, *value.values()) if isinstance(value, dict) else value
        return bool(value) and all(map(_is_plain, parts))
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, PLAIN)


def _sources(detector: nn.Module) -> dict[str, bytes]:
    """The source files of the modules' classes by the name of their module; torch's own go by its version."""
    sources = {}
    for kind in {type(module) for module in detector.modules()}:
        if kind.__module__.partition(".")[0] == "torch" or kind.__module__ in sources:
            continue
        try:
            sources[kind.__module__] = Path(inspect.getfile(kind)).read_bytes()
        except (TypeError, OSError):  # typed into a session, or installed without its source
            continue
    return sources
