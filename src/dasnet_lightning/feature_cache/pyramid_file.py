"""A pyramid as a safetensors file, bit by bit and in its memory layout, with a checksum: damage is told from features.

The layout counts because convolutions of the same numbers in another layout may differ in the last bits.
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
    """The file of a pyramid is cut short, was changed, or is something else."""


def split_pyramid(pyramid: Pyramid) -> list[Pyramid]:
    """One pyramid for each image, views of the given one."""
    return [
        map_tensors(pyramid, lambda tensor, row=row: tensor[row : row + 1]) for row in range(len(pyramid.levels[0]))
    ]


def join_pyramids(rows: Sequence[Pyramid], device: torch.device) -> Pyramid:
    """The images of several pyramids of one size together, in the memory layout of the first, on a device."""
    first = rows[0]
    switches = None if first.switches is None else [row.switches or () for row in rows]
    return Pyramid(
        levels=_join([row.levels for row in rows], device),
        strides=first.strides,
        size=first.size,
        switches=None if switches is None else _join(switches, device),
    )


def pack_pyramid(pyramid: Pyramid) -> bytes:
    """The content of the file of a pyramid."""
    named = _name(pyramid)
    orders = {name: _memory_order(tensor) for name, tensor in named.items()}
    # copies: safetensors refuses tensors that share memory
    stored = {
        name: tensor.cpu().permute(orders[name]).clone(memory_format=torch.contiguous_format)
        for name, tensor in named.items()
    }
    about = json.dumps(
        {
            "strides": pyramid.strides,
            "size": pyramid.size,
            "levels": len(pyramid.levels),
            "switches": None if pyramid.switches is None else len(pyramid.switches),
            "orders": orders,
        }
    )
    return save(stored, {"pyramid": about, "crc32": _checksum(about, stored)})


def read_pyramid(path: Path) -> Pyramid:
    """Read the file of a pyramid. Raises DamagedFile, or OSError where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise DamagedFile(str(error)) from error
    if "pyramid" not in header or header.get("crc32") != _checksum(header["pyramid"], stored):
        raise DamagedFile("its checksum is wrong")
    about = json.loads(header["pyramid"])
    named = {name: tensor.permute(_inverse(about["orders"][name])) for name, tensor in stored.items()}
    switches, size = about["switches"], about["size"]
    return Pyramid(
        levels=tuple(named[f"level{number}"] for number in range(about["levels"])),
        strides=tuple(about["strides"]),
        size=(size[0], size[1]),
        switches=None if switches is None else tuple(named[f"switches{number}"] for number in range(switches)),
    )


def _name(pyramid: Pyramid) -> dict[str, Tensor]:
    levels = {f"level{number}": level for number, level in enumerate(pyramid.levels)}
    return levels | {f"switches{number}": switches for number, switches in enumerate(pyramid.switches or ())}


def _join(rows: Sequence[tuple[Tensor, ...]], device: torch.device) -> tuple[Tensor, ...]:
    joined = []
    for parts in zip(*rows, strict=True):
        order = _memory_order(parts[0])
        together = torch.cat([part.permute(order).to(device) for part in parts])
        joined.append(together.permute(_inverse(order)))
    return tuple(joined)


def _memory_order(tensor: Tensor) -> list[int]:
    """The axes as they lie in memory, images first: 0, 2, 3, 1 is channels_last."""
    return [0, *sorted(range(1, tensor.ndim), key=lambda axis: -tensor.stride()[axis])]


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def _checksum(about: str, stored: Mapping[str, Tensor]) -> str:
    value = zlib.crc32(about.encode())
    for name, tensor in sorted(stored.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(raw_bytes(tensor), value)
    return f"{value:08x}"
