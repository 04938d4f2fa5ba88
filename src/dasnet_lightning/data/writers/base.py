"""Labels of one image, independent of the format that they are read from or written to, and the interface of writers."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool

from dasnet_lightning.data.records import ImageRecord, MaskState, Source
from dasnet_lightning.data.sources.checks import Box
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.selection import Selection
from dasnet_lightning.data.writers.outlines import Ring, trace_mask
from dasnet_lightning.rle import decode, encode_mask
from dasnet_lightning.storage.atomic import write_bytes

BOX_TOLERANCE = 1.0  # pixels; a box and the extent of its mask that differ by less are the same box


@dataclass(frozen=True, eq=False)
class ObjectLabel:
    """One object to write.

    Attributes:
        object_id: id of the object in the data set that it was read from.
        box: xyxy edges in pixels of the image.
        label: 1..num_classes-1.
        mask: COCO run-length counts, None for an object without a mask.
        polygons: corners of the mask if it was read as polygons; empty otherwise.
        ignore: whether it is a crowd or a difficult object.
        changed: whether it differs from its file; a file that is edited keeps all other objects as they are.
        extra: fields to add to the annotation in COCO files.
        by_model: whether a model made the mask; every format marks it (see `data.sources.model_masks`).
        quality: estimated IoU of a mask by a model with the true one, 0 to 1; None if it is unknown.
        tolerance: distance in pixels by which traced polygons may leave the mask's outline; 0 traces every pixel.
    """

    object_id: str
    box: Box
    label: int
    mask: bytes | None = None
    polygons: tuple[Ring, ...] = ()
    ignore: bool = False
    changed: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    by_model: bool = False
    quality: float | None = None
    tolerance: float = 0.0


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """All objects of one image.

    Attributes:
        image_id: id of the image in the data set that it was read from.
        file_name: path of the image relative to the image folder of its split.
        size: (height, width).
        objects: in the order of the file.
        void: run-length counts of the void pixels; None if there are none.
    """

    image_id: str
    file_name: str
    size: tuple[int, int]
    objects: tuple[ObjectLabel, ...]
    void: bytes | None = None

    def mask(self, item: ObjectLabel) -> Bool[np.ndarray, "H W"]:
        """Return the mask of an object, all False for an object without one."""
        return np.zeros(self.size, bool) if item.mask is None else decode([item.mask], self.size)[0]

    def outlines(self, item: ObjectLabel) -> list[Ring]:
        """Return the polygons of an object's mask: those that were read, or traced ones if they leave the image."""
        height, width = self.size
        inside = all(ring.min() >= 0 and (ring <= (width, height)).all() for ring in item.polygons)
        return list(item.polygons) if item.polygons and inside else self.traced(item)

    def traced(self, item: ObjectLabel) -> list[Ring]:
        """Return polygons along the pixels of an object's mask; they do not overlap if they are exact."""
        return trace_mask(self.mask(item), item.tolerance)


class Writer(ABC):
    """Writer of a data set in one format: `begin` each split, `add` its images, then `finish`.

    Args:
        root: folder of the new data set.
        class_names: names by label, background first.

    Attributes:
        flat_names: image names have no folders, and are unique without their suffix over all splits.
        losses: what the format cannot hold, as a sentence with a count.
    """

    flat_names: ClassVar[bool] = True

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        self.root = root
        self.class_names = tuple(class_names)
        self.losses: Counter[str] = Counter()

    @abstractmethod
    def image_folder(self, split: str) -> Path:
        """Return the folder that holds the images of a split."""

    def begin(self, split: str, source: Source) -> None:  # noqa: B027 (most formats have nothing to do)
        """Start a split; its labels come from `source`."""

    def keeps_masks(self, source: Source) -> bool:
        """Return whether masks of this source are copied from its file, so that they need not be decoded."""
        return False

    @abstractmethod
    def add(self, split: str, labels: ImageLabels) -> None:
        """Write the labels of one image, or collect them for `finish`."""

    def finish(self) -> None:  # noqa: B027
        """Write the files of the whole data set, such as lists of images and class names."""

    def count_loss(self, sentence: str, count: int = 1) -> None:
        """Count labels that the format cannot hold whole."""
        if count:
            self.losses[sentence] += count


def write_new(file: Path, content: bytes) -> None:
    """Write a file of a new data set atomically; without a sync to disk, because it can be made again."""
    write_bytes(file, content, synced=False)


def original_source(source: Source) -> Source:
    """Return the source that a selection was made from, or the source itself."""
    while isinstance(source, Selection):
        source = source.source
    return source


def read_labels(
    source: Source, record: ImageRecord, file_name: str, open_masks: bool = True
) -> tuple[ImageLabels, int]:
    """Read the labels of one image, with its masks.

    Args:
        source: the data set.
        record: the image.
        file_name: name of the image where it is written.
        open_masks: whether to decode the masks.

    Returns:
        The labels, and the number of masks that cannot be used; their objects have a box alone.
    """
    present = [index for index, item in enumerate(record.objects) if item.mask is MaskState.PRESENT and open_masks]
    counts: dict[int, bytes] = {}
    void = None
    if present:
        loaded = source.load_masks(record, present)
        masks = zip(present, loaded.masks, loaded.valid, strict=True)
        counts = {index: encode_mask(mask) for index, mask, valid in masks if valid}
        void = None if loaded.void is None or not loaded.void.any() else encode_mask(loaded.void)
    origin = original_source(source)
    objects = tuple(
        ObjectLabel(
            object_id=item.object_id,
            box=item.box,
            label=item.label,
            mask=counts.get(index),
            polygons=origin.polygons(item.object_id) if isinstance(origin, COCOSource) and index in counts else (),
            ignore=item.ignore,
            by_model=item.by_model and index in counts,
        )
        for index, item in enumerate(record.objects)
    )
    invalid = sum(item.mask is MaskState.INVALID for item in record.objects) + len(present) - len(counts)
    return ImageLabels(record.image_id, file_name, record.size, objects, void), invalid


def mask_extent(rings: Sequence[Ring]) -> Box:
    """Return the box around polygons."""
    corners = np.concatenate(rings)
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return x0, y0, x1, y1


def differs_from_box(rings: Sequence[Ring], box: Box) -> bool:
    """Return whether a box differs from the extent of its polygons, which some formats keep instead of it."""
    return max(abs(a - b) for a, b in zip(mask_extent(rings), box, strict=True)) > BOX_TOLERANCE
