"""Feature pyramid as a safetensors file with a checksum, restored with the same bits and memory layout.

The layout matters because a convolution of the same values in another layout can differ in the last bits.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dasnet_lightning.feature_cache.fingerprint import raw_bytes
from dasnet_lightning.types import Pyramid, map_tensors


class DamagedFile(Exception):
    """A pyramid file is truncated, modified, or not a pyramid file."""


def split_pyramid(pyramid: Pyramid) -> list[Pyramid]:
    """Split the pyramid of a batch into one pyramid for each image, as views."""
    return [
        map_tensors(pyramid, lambda tensor, image=image: tensor[image : image + 1])
        for image in range(len(pyramid.levels[0]))
    ]


def join_pyramids(pyramids: Sequence[Pyramid], device: torch.device) -> Pyramid:
    """Concatenate pyramids of one size to the pyramid of a batch on `device`, in the memory layout of the first."""
    first = pyramids[0]
    switches = None if first.switches is None else [pyramid.switches or () for pyramid in pyramids]
    return Pyramid(
        levels=_concatenate([pyramid.levels for pyramid in pyramids], device),
        strides=first.strides,
        size=first.size,
        switches=None if switches is None else _concatenate(switches, device),
    )


def pack_pyramid(pyramid: Pyramid) -> bytes:
    """Return the content of a pyramid file."""
    named = _name_tensors(pyramid)
    orders = {name: _memory_order(tensor) for name, tensor in named.items()}
    # clones, because safetensors refuses tensors that share memory
    stored = {
        name: tensor.cpu().permute(orders[name]).clone(memory_format=torch.contiguous_format)
        for name, tensor in named.items()
    }
    header = json.dumps(
        {
            "strides": pyramid.strides,
            "size": pyramid.size,
            "levels": len(pyramid.levels),
            "switches": None if pyramid.switches is None else len(pyramid.switches),
            "orders": orders,
        }
    )
    return save(stored, {"pyramid": header, "crc32": _checksum(header, stored)})


def read_pyramid(path: Path) -> Pyramid:
    """Read a pyramid file; raise DamagedFile if it is damaged and OSError if it does not exist."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise DamagedFile(str(error)) from error
    if "pyramid" not in metadata or metadata.get("crc32") != _checksum(metadata["pyramid"], stored):
        raise DamagedFile("its checksum does not match")
    header = json.loads(metadata["pyramid"])
    named = {name: tensor.permute(_inverse(header["orders"][name])) for name, tensor in stored.items()}
    num_switches, size = header["switches"], header["size"]
    switches = None if num_switches is None else tuple(named[f"switches{index}"] for index in range(num_switches))
    return Pyramid(
        levels=tuple(named[f"level{index}"] for index in range(header["levels"])),
        strides=tuple(header["strides"]),
        size=(size[0], size[1]),
        switches=switches,
    )


def _name_tensors(pyramid: Pyramid) -> dict[str, Tensor]:
    levels = {f"level{index}": level for index, level in enumerate(pyramid.levels)}
    return levels | {f"switches{index}": switches for index, switches in enumerate(pyramid.switches or ())}


def _concatenate(images: Sequence[tuple[Tensor, ...]], device: torch.device) -> tuple[Tensor, ...]:
    """Concatenate the tensors of several images level by level, in the memory layout of the first image."""
    batches = []
    for tensors in zip(*images, strict=True):
        order = _memory_order(tensors[0])
        batch = torch.cat([tensor.permute(order).to(device) for tensor in tensors])
        batches.append(batch.permute(_inverse(order)))
    return tuple(batches)


def _memory_order(tensor: Tensor) -> list[int]:
    """Return the axes in memory order, images first: 0, 2, 3, 1 is channels_last."""
    return [0, *sorted(range(1, tensor.ndim), key=lambda axis: -tensor.stride()[axis])]


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def _checksum(header: str, stored: Mapping[str, Tensor]) -> str:
    crc = zlib.crc32(header.encode())
    for name, tensor in sorted(stored.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(raw_bytes(tensor), crc)
    return f"{crc:08x}"
