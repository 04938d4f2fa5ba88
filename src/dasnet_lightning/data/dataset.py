"""Dataset of images with boxes, with masks inside the mask budget, and with ground truth for evaluation.

A mask file is opened only for an image in `mask_ids`, and there only for objects whose mask is present.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Int64
from torch.utils.data import Dataset

from dasnet_lightning.data.augmentation.objects import Augmented
from dasnet_lightning.data.augmentation.ssd_crop import pixel_window
from dasnet_lightning.data.augmentation.transforms import Transform
from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.loader import Sample
from dasnet_lightning.data.packed_masks import PackedMasks, empty_masks, unpack_masks, unpack_void
from dasnet_lightning.data.pixels import ImageRange
from dasnet_lightning.data.records import ImageRecord, MaskState, Source
from dasnet_lightning.data.sampler import Key, sample_seed
from dasnet_lightning.errors import DataError
from dasnet_lightning.rle import encode_mask
from dasnet_lightning.types import VOID, GroundTruth, Target

BoolMap = Bool[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class LoadedMasks:
    """Usable masks of one image in original pixels.

    Attributes:
        opened: whether any mask was opened. If False, the masks are unknown, not empty.
        packed: the masks.
        index: mask j belongs to object `index[j]`.
    """

    opened: bool
    packed: PackedMasks
    index: Int64[np.ndarray, " m"]


class SegmentationDataset(Dataset[Sample]):
    """Map-style dataset over records of a source; its keys are the (round, index) pairs of `EpochSampler`.

    Args:
        source: opens the masks of the records.
        records: images of the dataset, all or some of `source.records`.
        mask_ids: ids of the images whose masks may be opened.
        transform: augmentation and resize.
        seed: seed of the augmentation.
        with_truth: add the ground truth for evaluation, in original pixels. An image that has objects but no usable mask
            gets none, so that it does not count as background.
        image_range: range of the data set's images of more than 8 bits; None for that of their type.
    """

    def __init__(
        self,
        source: Source,
        records: Sequence[ImageRecord],
        mask_ids: frozenset[str],
        transform: Transform,
        seed: int,
        with_truth: bool = False,
        image_range: ImageRange | None = None,
    ) -> None:
        self.source = source
        self.records = tuple(records)
        self.mask_ids = mask_ids
        self.transform = transform
        self.seed = seed
        self.with_truth = with_truth
        self.image_range = image_range

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample:
        """Load and augment one image. Raises DataError with the path if the image or a box cannot be used."""
        epoch, index = key
        record = self.records[index]
        image = read_image(record.path, record.size, image_range=self.image_range)
        loaded = load_masks_of(self.source, record, record.image_id in self.mask_ids)
        seed = sample_seed(self.seed, epoch, index)
        labels = np.array([item.label for item in record.objects], np.int64)
        boxes = np.array([item.box for item in record.objects], np.float64).reshape(-1, 4)
        try:
            augmented = self.transform(image, boxes, loaded.packed, loaded.index, seed, labels)
        except DataError as error:
            raise DataError(f"{record.path}: {error}") from error
        pixels = torch.from_numpy(np.ascontiguousarray(augmented.image)).permute(2, 0, 1)
        truth = self._ground_truth(record, loaded, augmented.kept.tolist()) if self.with_truth else None
        return Sample(record.image_id, pixels, build_target(record, augmented, loaded.opened, truth), seed, record.size)

    def _ground_truth(self, record: ImageRecord, loaded: LoadedMasks, kept: Sequence[int]) -> GroundTruth | None:
        if record.objects and not len(loaded.index):
            return None
        mask_of = dict(zip(loaded.index.tolist(), unpack_masks(loaded.packed), strict=True))
        void = unpack_void(loaded.packed)
        boxes = np.array([item.box for item in record.objects], np.float64).reshape(-1, 4)
        labels, ignore = [item.label for item in record.objects], [item.ignore for item in record.objects]
        masks = [mask_of.get(i) for i in range(len(record.objects))]
        return GroundTruth(
            semantic=torch.from_numpy(paint_semantic(record.size, boxes, labels, ignore, masks, void)),
            masks=tuple(encode_mask(mask_of[i]) if i in mask_of else None for i in kept),
            void=None if void is None else encode_mask(void),
        )


def load_masks_of(source: Source, record: ImageRecord, allowed: bool) -> LoadedMasks:
    """Open the present masks of one image if allowed; masks that turn out invalid are left out."""
    present = [i for i, item in enumerate(record.objects) if item.mask is MaskState.PRESENT] if allowed else []
    if not present:
        return LoadedMasks(False, empty_masks(record.size, 0), np.zeros(0, np.int64))
    masks = source.load_masks(record, present)
    valid = [j for j, is_valid in enumerate(masks.valid) if is_valid]
    return LoadedMasks(True, masks.packed.select(valid), np.array(present, np.int64)[valid])


def build_target(record: ImageRecord, augmented: Augmented, masks_opened: bool, truth: GroundTruth | None) -> Target:
    """Build the target of an augmented image; `masks` and `void` are None if no mask was opened."""
    survivors = [record.objects[i] for i in augmented.kept.tolist()]
    has_mask = np.zeros(len(survivors), dtype=bool)
    has_mask[augmented.mask_index] = True
    return Target(
        boxes=torch.from_numpy(augmented.boxes.astype(np.float32)),
        labels=torch.tensor([item.label for item in survivors], dtype=torch.int64),
        has_mask=torch.from_numpy(has_mask),
        ignore=torch.tensor([item.ignore for item in survivors], dtype=torch.bool),
        masks=torch.from_numpy(_masks_of_all_objects(augmented)) if masks_opened else None,
        void=torch.from_numpy(augmented.void) if masks_opened else None,
        truth=truth,
    )


def paint_semantic(
    size: tuple[int, int],
    boxes: Float[np.ndarray, "n 4"],
    labels: Sequence[int],
    ignore: Sequence[bool],
    masks: Sequence[BoolMap | None],
    void: BoolMap | None = None,
) -> Int16[np.ndarray, "H W"]:
    """Paint the objects of one image into a class map: 0 is background, VOID is unknown.

    Where masks overlap, the smaller object lies on top.

    Args:
        size: (height, width) of the map.
        boxes: xyxy in pixels of the map.
        labels: class of each object.
        ignore: objects whose mask is painted as VOID.
        masks: mask of each object, or None if unknown. The box of such an object is VOID where no known mask covers it.
        void: pixels that are VOID in any case.
    """
    semantic = np.zeros(size, dtype=np.int16)
    for box, mask in zip(boxes, masks, strict=True):
        if mask is None:
            semantic[pixel_window(box, size)] = VOID
    known = [(mask, label, skip) for mask, label, skip in zip(masks, labels, ignore, strict=True) if mask is not None]
    for mask, label, skip in sorted(known, key=lambda item: -int(np.count_nonzero(item[0]))):
        semantic[mask] = VOID if skip else label
    if void is not None:
        semantic[void] = VOID
    return semantic


def _masks_of_all_objects(augmented: Augmented) -> Bool[np.ndarray, "k H W"]:
    """Return one mask per object; those of objects without a mask are never read."""
    count = len(augmented.kept)
    if np.array_equal(augmented.mask_index, np.arange(count)):
        return augmented.masks
    masks = np.zeros((count, *augmented.void.shape), dtype=bool)
    masks[augmented.mask_index] = augmented.masks
    return masks
