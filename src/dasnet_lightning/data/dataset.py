"""Images with their boxes, and with their masks where the mask budget allows it.

A mask file is opened only for an image in `mask_ids`, and there only for objects whose mask is present.

The class map that semantic evaluation compares with, painted from the masks of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch.utils.data import Dataset

from dasnet_lightning.data.augmentation.objects import Augmented
from dasnet_lightning.data.augmentation.ssd_crop import pixel_window
from dasnet_lightning.data.augmentation.transforms import Transform
from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.loader import Sample
from dasnet_lightning.data.packed_masks import PackedMasks, empty_planes, unpack_masks, unpack_void
from dasnet_lightning.data.pixels import ImageRange
from dasnet_lightning.data.records import ImageRecord, MaskState, Source
from dasnet_lightning.data.sampler import Key, sample_seed
from dasnet_lightning.errors import DataError
from dasnet_lightning.rle import encode_mask
from dasnet_lightning.types import IGNORE_INDEX, GroundTruth, Target


@dataclass(frozen=True, eq=False)
class LoadedMasks:
    """The usable masks of one image in its original pixels; mask j belongs to object `index[j]`.

    `asked` says whether any mask was opened at all; where not, nothing is known and nothing here may be read as empty.
    """

    asked: bool
    planes: PackedMasks
    index: Int64[np.ndarray, " m"]


class SegmentationDataset(Dataset[Sample]):
    """Map-style dataset over some records of a source; keys are (round, index) pairs (see EpochSampler).

    records: what is shown, a part of source.records or all. mask_ids: image ids whose masks may be opened. seed: of the
    augmentation. with_truth: add what evaluation compares with, in the original image's pixels; an image that has objects
    but no mask gets no truth, so that it does not count as background. image_range: the data set's, for images of more than
    8 bits.
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
        """Raises DataError with the image's path where the image or a box cannot be used."""
        epoch, index = key
        record = self.records[index]
        image = read_image(record.path, record.size, image_range=self.image_range)
        opened = load_masks_of(self.source, record, record.image_id in self.mask_ids)
        seed = sample_seed(self.seed, epoch, index)
        labels = np.array([item.label for item in record.objects], np.int64)
        boxes = np.array([item.box for item in record.objects], np.float64).reshape(-1, 4)
        try:
            out = self.transform(image, boxes, opened.planes, opened.index, seed, labels)
        except DataError as error:
            raise DataError(f"{record.path}: {error}") from error
        pixels = torch.from_numpy(np.ascontiguousarray(out.image)).permute(2, 0, 1)
        target = build_target(record, out, opened.asked, self._truth(record, opened, out.kept.tolist()))
        return Sample(record.image_id, pixels, target, seed)

    def _truth(self, record: ImageRecord, opened: LoadedMasks, kept: Sequence[int]) -> GroundTruth | None:
        if not self.with_truth or (record.objects and not opened.asked):
            return None  # objects without a single mask: there is nothing to measure against
        known = dict(zip(opened.index.tolist(), unpack_masks(opened.planes), strict=True))
        void = unpack_void(opened.planes)
        boxes = np.array([item.box for item in record.objects], np.float64).reshape(-1, 4)
        labels, ignore = [item.label for item in record.objects], [item.ignore for item in record.objects]
        masks = [known.get(i) for i in range(len(record.objects))]
        return GroundTruth(
            semantic=torch.from_numpy(paint_semantic(record.size, boxes, labels, ignore, masks, void)),
            masks=tuple(encode_mask(known[i]) if i in known else None for i in kept),
            void=None if void is None else encode_mask(void),
        )


def load_masks_of(source: Source, record: ImageRecord, allowed: bool) -> LoadedMasks:
    """Open the present masks of one image if allowed; those that turn out invalid are left out."""
    present = [i for i, item in enumerate(record.objects) if item.mask is MaskState.PRESENT] if allowed else []
    if not present:
        return LoadedMasks(False, empty_planes(record.size, 0), np.zeros(0, np.int64))
    loaded = source.load_masks(record, present)
    valid = [j for j, good in enumerate(loaded.valid) if good]
    return LoadedMasks(True, loaded.planes.select(valid), np.array(present, np.int64)[valid])


def build_target(record: ImageRecord, out: Augmented, masks_asked: bool, truth: GroundTruth | None) -> Target:
    """Bring the surviving objects of an image into a Target; `masks` and `void` stay None where no mask was opened."""
    survivors = [record.objects[i] for i in out.kept.tolist()]
    has_mask = np.zeros(len(survivors), dtype=bool)
    has_mask[out.mask_index] = True
    return Target(
        boxes=torch.from_numpy(out.boxes.astype(np.float32)),
        labels=torch.tensor([item.label for item in survivors], dtype=torch.int64),
        has_mask=torch.from_numpy(has_mask),
        ignore=torch.tensor([item.ignore for item in survivors], dtype=torch.bool),
        masks=torch.from_numpy(_masks_of_all(out)) if masks_asked else None,
        void=torch.from_numpy(out.void) if masks_asked else None,
        truth=truth,
    )


def _masks_of_all(out: Augmented) -> Bool[np.ndarray, "k H W"]:
    """A mask for every object; what stands where there is none is never read."""
    count = len(out.kept)
    if np.array_equal(out.mask_index, np.arange(count)):
        return out.masks
    masks = np.zeros((count, *out.void.shape), dtype=bool)
    masks[out.mask_index] = out.masks
    return masks


BoolMap = Bool[np.ndarray, "H W"]


def paint_semantic(
    size: tuple[int, int],
    boxes: Float[np.ndarray, "n 4"],
    labels: Sequence[int],
    ignore: Sequence[bool],
    masks: Sequence[BoolMap | None],
    void: BoolMap | None = None,
) -> UInt8[np.ndarray, "H W"]:
    """Paint the masks of one image into a class map: 0 background, 255 where the truth is not known.

    masks[i] is None where object i has no usable mask: its box is then 255, except where a known mask covers it.
    Where masks overlap, the smaller object lies on top. The masks of ignored objects are painted as 255; void pixels are
    255 whatever lies there.
    """
    semantic = np.zeros(size, dtype=np.uint8)
    for box, mask in zip(boxes, masks, strict=True):
        if mask is None:
            semantic[pixel_window(box, size)] = IGNORE_INDEX
    known = [(mask, label, skip) for mask, label, skip in zip(masks, labels, ignore, strict=True) if mask is not None]
    for mask, label, skip in sorted(known, key=lambda item: -int(np.count_nonzero(item[0]))):
        semantic[mask] = IGNORE_INDEX if skip else label
    if void is not None:
        semantic[void] = IGNORE_INDEX
    return semantic
