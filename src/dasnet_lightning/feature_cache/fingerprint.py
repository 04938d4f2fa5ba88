"""Fingerprint of a frozen detector: detectors with the same fingerprint compute the same features."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PLAIN_TYPES = (bool, int, float, str, type(None))

Stamp = tuple[tuple[int, int, torch.dtype], ...]


def fingerprint(detector: nn.Module) -> str:
    """Hash the modules of a detector, their plain attributes, and all parameters and buffers in order.

    Buffers outside the state dict, such as the pixel mean, count too. The source files of the modules' classes count as
    well, so that an edited custom detector gets another fingerprint.
    """
    digest = hashlib.sha256()
    for name, module in detector.named_modules():
        module_class = type(module)
        plain = {key: value for key, value in sorted(vars(module).items()) if _is_plain(value)}
        class_name = (module_class.__module__, module_class.__qualname__)
        digest.update(repr((name, *class_name, module.extra_repr(), plain)).encode())
    for name, tensor in (*detector.named_parameters(), *detector.named_buffers()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(raw_bytes(tensor))
    for module_name, source in sorted(_sources(detector).items()):
        digest.update(repr((module_name, source)).encode())
    return digest.hexdigest()


def stamp(detector: nn.Module) -> Stamp | None:
    """Return a value that changes if a tensor of the detector is replaced, moved or modified, without reading its data.

    Return None if a tensor was created in inference mode: such tensors have no version counter.
    """
    tensors = [*detector.parameters(), *detector.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors)


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in the order of its axes, independent of its memory layout."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | dict):  # an empty one may be filled lazily
        items = (*value, *value.values()) if isinstance(value, dict) else value
        return bool(value) and all(map(_is_plain, items))
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, PLAIN_TYPES)


def _sources(detector: nn.Module) -> dict[str, bytes]:
    """Return the source of the modules' classes by Python module, except torch's, whose version is part of the key."""
    sources = {}
    for module_class in {type(module) for module in detector.modules()}:
        module_name = module_class.__module__
        if module_name.partition(".")[0] == "torch" or module_name in sources:
            continue
        try:
            sources[module_name] = Path(inspect.getfile(module_class)).read_bytes()
        except (TypeError, OSError):  # defined interactively, or installed without source
            continue
    return sources
