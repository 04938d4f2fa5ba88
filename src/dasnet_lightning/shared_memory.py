"""Transfer of a record of tensors to another process in one block of shared memory.

torch sends every tensor through its own file descriptor, and the training process fetches them one by one. Sixteen
images with masks need a hundred of them. Here all tensors of a record share one block, and the receiver restores them as
views of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes
# bytes; tensors up to this size are copied on arrival, so that a reference to some boxes does not keep the images alive
SMALL = 65_536


@dataclass(frozen=True)
class TensorSlot:
    """Offset in bytes, dtype and shape of a tensor in the block."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class RecordLayout:
    """A record with its tensors replaced by slots."""

    record_type: type
    values: tuple[Any, ...]


def pack(record: Any) -> tuple[Tensor, RecordLayout]:
    """Copy all tensors of a record on the CPU, also in tuples and nested records, into one shared block of bytes."""
    slots: list[tuple[TensorSlot, Tensor]] = []
    layout = _replace_tensors(record, slots)
    # as in torch's collate: memory that is shared from the start is not copied again when it is sent
    storage = torch.UntypedStorage._new_shared(max(1, slots[-1][0].stop if slots else 0))
    block = torch.empty(0, dtype=torch.uint8).set_(storage)
    for slot, tensor in slots:
        _view_slot(block, slot).copy_(tensor)
    return block, layout


def unpack(block: Tensor, layout: RecordLayout) -> Any:
    """Return the packed record; its large tensors are views of the block."""
    return layout.record_type(*(_restore(value, block) for value in layout.values))


def _replace_tensors(value: Any, slots: list[tuple[TensorSlot, Tensor]]) -> Any:
    if isinstance(value, Tensor):
        end = slots[-1][0].stop if slots else 0
        slots.append((TensorSlot(-(-end // ALIGNMENT) * ALIGNMENT, value.dtype, tuple(value.shape)), value))
        return slots[-1][0]
    if isinstance(value, tuple):
        return tuple(_replace_tensors(item, slots) for item in value)
    if is_dataclass(value):
        return RecordLayout(type(value), tuple(_replace_tensors(item, slots) for item in _field_values(value)))
    return value


def _field_values(record: Any) -> Iterator[Any]:
    return (getattr(record, field.name) for field in fields(record))


def _restore(value: Any, block: Tensor) -> Any:
    if isinstance(value, TensorSlot):
        tensor = _view_slot(block, value)
        return tensor.clone() if value.stop - value.start <= SMALL else tensor
    if isinstance(value, RecordLayout):
        return unpack(block, value)
    return tuple(_restore(item, block) for item in value) if isinstance(value, tuple) else value


def _view_slot(block: Tensor, slot: TensorSlot) -> Tensor:
    return block[slot.start : slot.stop].view(slot.dtype).view(slot.shape)
