"""Records of tensors on their way to another process: one block of shared memory, not one for each tensor.

torch hands every tensor over through a file descriptor of its own, a hundred of them for sixteen images with masks, and
the process that trains has to fetch them one by one. Here all tensors of a record lie one after the other in one block,
and are seen again as what they were when it arrives.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes
SMALL = 65_536  # bytes; what is no larger is copied out on arrival, so that keeping some boxes does not keep the images


@dataclass(frozen=True)
class TensorSlot:
    """Where a tensor lies in the block."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class RecordLayout:
    """A record without its tensors: places stand for them."""

    kind: type
    values: tuple[Any, ...]


def pack(record: Any) -> tuple[Tensor, RecordLayout]:
    """Copy all tensors of a record (on the CPU, also in tuples and in records inside) into one shared block of bytes."""
    slots: list[tuple[TensorSlot, Tensor]] = []
    layout = _layout(record, slots)
    # torch's own collate allocates in the same way: the pages are written once, nothing is copied again when they are sent
    storage = torch.UntypedStorage._new_shared(max(1, slots[-1][0].stop if slots else 0))
    block = torch.empty(0, dtype=torch.uint8).set_(storage)
    for slot, tensor in slots:
        _view(block, slot).copy_(tensor)
    return block, layout


def unpack(block: Tensor, layout: RecordLayout) -> Any:
    """The record that was packed; its large tensors are views of the block."""
    return layout.kind(*(_restore(value, block) for value in layout.values))


def _layout(value: Any, slots: list[tuple[TensorSlot, Tensor]]) -> Any:
    if isinstance(value, Tensor):
        end = slots[-1][0].stop if slots else 0
        slots.append((TensorSlot(-(-end // ALIGNMENT) * ALIGNMENT, value.dtype, tuple(value.shape)), value))
        return slots[-1][0]
    if isinstance(value, tuple):
        return tuple(_layout(item, slots) for item in value)
    if is_dataclass(value):
        return RecordLayout(type(value), tuple(_layout(item, slots) for item in _values(value)))
    return value


def _values(record: Any) -> Iterator[Any]:
    return (getattr(record, field.name) for field in fields(record))


def _restore(value: Any, block: Tensor) -> Any:
    if isinstance(value, TensorSlot):
        tensor = _view(block, value)
        return tensor.clone() if value.stop - value.start <= SMALL else tensor
    if isinstance(value, RecordLayout):
        return unpack(block, value)
    return tuple(_restore(item, block) for item in value) if isinstance(value, tuple) else value


def _view(block: Tensor, slot: TensorSlot) -> Tensor:
    return block[slot.start : slot.stop].view(slot.dtype).view(slot.shape)
