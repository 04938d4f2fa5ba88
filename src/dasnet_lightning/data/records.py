"""What a data set says before anything is opened: images, objects, and where each object's mask would be found.

Sources read annotation files into these records; nothing here touches pixels. A mask is *present*, *absent* or
*invalid*; an absent mask is never turned into zeros, and an invalid one leaves its box in use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool

from dasnet_lightning.data.packed_masks import PackedMasks, unpack_masks, unpack_void


class MaskState(StrEnum):
    PRESENT = "present"
    ABSENT = "absent"
    INVALID = "invalid"


@dataclass(frozen=True, eq=False)
class ObjectRecord:
    """One annotated object. `box` is xyxy in the original image's pixels (edges, not pixel indices: x1 - x0 is the width).

    `label` is 1..num_classes-1. `ignore` marks crowd and difficult objects. `reason` says why a mask is invalid.
    """

    object_id: str
    box: tuple[float, float, float, float]
    label: int
    mask: MaskState
    ignore: bool = False
    reason: str = ""


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image: `size` is (height, width) as annotated, `path` the file."""

    image_id: str
    path: Path
    size: tuple[int, int]
    objects: tuple[ObjectRecord, ...]

    @property
    def has_masks(self) -> bool:
        return any(item.mask is MaskState.PRESENT for item in self.objects)


@dataclass(frozen=True, eq=False)
class Problem:
    """A label that was refused, changed or worth a warning: `file: record: message`."""

    file: Path
    record: str
    message: str
    action: str  # "refused" (not used at all), "clipped", "mask_invalid" (box kept), "warning"

    def __str__(self) -> str:
        return f"{self.file}: {self.record}: {self.message}"


@dataclass(frozen=True, eq=False)
class Masks:
    """The opened masks of some objects of one image, in its original pixels, in the order asked for.

    `masks[i]` may be read only where `valid[i]`; `reasons[i]` says why not. `void` marks pixels that no loss and no
    metric may read (VOC's 255 border), None where the format has none. Both are made from `planes` when asked for.
    """

    planes: PackedMasks
    valid: tuple[bool, ...]
    reasons: tuple[str, ...]

    @property
    def masks(self) -> Bool[np.ndarray, "n H0 W0"]:
        return unpack_masks(self.planes)

    @property
    def void(self) -> Bool[np.ndarray, "H0 W0"] | None:
        return unpack_void(self.planes)


class Source(Protocol):
    """A data set on disk: one split of it, read into records."""

    class_names: tuple[str, ...]  # class_names[0] is "background"
    category_ids: Mapping[int, int | str]  # the data set's own id of a label, for exports; empty where it has none
    records: tuple[ImageRecord, ...]
    problems: tuple[Problem, ...]
    root: Path

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Open the masks of `record.objects[i]` for i in indices. The only method that opens a mask."""
        ...
