"""Records of a data set: images, objects, problems, opened masks, and the interface of a source.

Sources read annotation files into these records without touching pixels. A mask is *present*, *absent* or *invalid*. An
absent mask is never turned into zeros, and an object with an invalid mask keeps its box.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool

from dasnet_lightning.data.packed_masks import PackedMasks, unpack_masks, unpack_void
from dasnet_lightning.errors import one_line


class MaskState(StrEnum):
    """Whether an object has a mask that can be used."""

    PRESENT = "present"
    ABSENT = "absent"
    INVALID = "invalid"


@dataclass(frozen=True, eq=False)
class ObjectRecord:
    """One annotated object.

    Attributes:
        object_id: unique in its source.
        box: xyxy edges in pixels of the original image; x1 - x0 is the width.
        label: class index, 1..num_classes-1.
        mask: state of the mask.
        ignore: True for crowd and difficult objects.
        reason: why the mask is invalid; empty otherwise.
        by_model: whether a model made the mask. Such a mask is ABSENT unless it is asked for (see `open_dataset`).
    """

    object_id: str
    box: tuple[float, float, float, float]
    label: int
    mask: MaskState
    ignore: bool = False
    reason: str = ""
    by_model: bool = False


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image file with its annotated (height, width) and objects."""

    image_id: str
    path: Path
    size: tuple[int, int]
    objects: tuple[ObjectRecord, ...]

    @property
    def has_masks(self) -> bool:
        """Whether at least one object has a usable mask."""
        return any(item.mask is MaskState.PRESENT for item in self.objects)


@dataclass(frozen=True, eq=False)
class Problem:
    """Label that was refused, changed, or deserves a warning; printed as `file: record: message`.

    Attributes:
        file: the annotation file.
        record: the record in that file, for example "image 'a.jpg'".
        message: what is wrong with it.
        action: "refused" (not used), "clipped", "mask_invalid" (only the box is used), "unused" (a file) or "warning".
    """

    file: Path
    record: str
    message: str
    action: str

    def __str__(self) -> str:
        return one_line(f"{self.file}: {self.record}: {self.message}")


@dataclass(frozen=True, eq=False)
class Masks:
    """Opened masks of some objects of one image in original pixels, in the order of the requested indices.

    Attributes:
        packed: the masks and the void map as bits.
        valid: read `masks[i]` only if `valid[i]`.
        reasons: why mask i cannot be used; empty if it can.
    """

    packed: PackedMasks
    valid: tuple[bool, ...]
    reasons: tuple[str, ...]

    @property
    def masks(self) -> Bool[np.ndarray, "n H0 W0"]:
        """The masks as arrays, unpacked on each access."""
        return unpack_masks(self.packed)

    @property
    def void(self) -> Bool[np.ndarray, "H0 W0"] | None:
        """Pixels that no loss and no metric may read (VOC's 255); None if the format has no void map."""
        return unpack_void(self.packed)


class Source(ABC):
    """One split of a data set on disk, read into records.

    Attributes:
        class_names: names by label; `class_names[0]` is "background".
        category_ids: the data set's own id of each label, for exports; empty if it has none.
        records: all usable images.
        problems: everything that was refused, changed or is worth a warning.
        root: folder of the data set.
        files: annotation files and lists that were read for the whole split.
    """

    class_names: tuple[str, ...]
    category_ids: Mapping[int, int | str] = MappingProxyType({})
    records: tuple[ImageRecord, ...]
    problems: tuple[Problem, ...]
    root: Path
    files: tuple[Path, ...] = ()

    @abstractmethod
    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Open the masks of `record.objects[i]` for i in `indices`; no other method opens a mask."""

    def mask_digest(self, record: ImageRecord) -> str | None:
        """Return a digest of the stored masks of an image, without decoding them.

        None means that they are stored in `files`, together with those of other images.
        """
        return None
