"""Photographs with their kept features: the frozen backbone runs once for each image and once for its mirror image."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dasnet_lightning import MixedSupervisionDataModule
from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.data.images import read_image
from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.feature_cache.fingerprint import fingerprint
from dasnet_lightning.functional.boxes import scale_boxes
from dasnet_lightning.functional.regions import ground_truth_detections
from dasnet_lightning.storage.reading import read_safetensors
from dasnet_lightning.tasks.checkpoints import load_detector
from dasnet_lightning.types import Batch, Detections, Pyramid, Target

ENCODED_AT_ONCE = 8
JITTERED_IOU = (0.7, 0.8)
JITTER_SEED = 20_000
MAX_TRIES = 10_000
VIEWS = 2  # the image and its mirror image


@dataclass(frozen=True)
class DetectorChoice:
    """The frozen detector of all methods.

    Attributes:
        name: its registered name.
        options: options of its builder.
        checkpoint: a checkpoint with its weights, or None.
    """

    name: str
    options: dict[str, object]
    checkpoint: Path | None = None

    def build(self, num_classes: int, class_names: Sequence[str]) -> FrozenDetector:
        """Build it with its weights."""
        detector = build_detector(self.name, num_classes, **self.options)
        if self.checkpoint is not None:
            load_detector(detector, self.checkpoint, class_names)
        return FrozenDetector(detector.to(memory_format=torch.channels_last))


class KeptFeatures:
    """Features of all images and their mirror images in half precision, each level [views, images, h, w, channels]."""

    def __init__(self, levels: Sequence[Tensor], strides: tuple[int, ...], size: tuple[int, int]) -> None:
        self.levels, self.strides, self.size = tuple(levels), strides, size

    def pyramid(self, indices: Sequence[int], mirrored: Sequence[bool]) -> Pyramid:
        """Return the features of images, each straight or mirrored."""
        view = torch.tensor(mirrored, dtype=torch.int64)
        levels = [level[view, torch.tensor(indices)].float().permute(0, 3, 1, 2) for level in self.levels]
        return Pyramid(tuple(levels), self.strides, self.size)


class Photographs:
    """One split of a data set with all its masks, and the features of its images.

    Args:
        dataset: the images, not augmented.
        detector: computes the features.
        cache: folder that keeps the features; None keeps them in memory only.
    """

    def __init__(self, dataset: SegmentationDataset, detector: FrozenDetector, cache: Path | None) -> None:
        self.records = dataset.records
        self.detector, self.cache = detector, cache
        self.dataset = dataset
        self.targets = [dataset[(0, index)].target for index in range(len(dataset))]
        self._pixels: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def mirrored_targets(self) -> list[Target]:
        """The targets of the mirror images."""
        return [mirror_target(target, self.input_size[1]) for target in self.targets]

    @property
    def input_size(self) -> tuple[int, int]:
        """The (H, W) of the network's input."""
        return self.detector.image_size

    def pixels(self, index: int) -> np.ndarray:
        """Return the RGB pixels of a photograph at its own size."""
        if index not in self._pixels:
            record = self.records[index]
            self._pixels[index] = read_image(record.path, record.size)
        return self._pixels[index]

    def own_boxes(self, boxes: Tensor, index: int) -> Tensor:
        """Return boxes of the network's input in the pixels of the photograph."""
        return scale_boxes(boxes, self.input_size, self.records[index].size)

    @cached_property
    def features(self) -> KeptFeatures:
        """The features of all images, from the cache folder if they lie there."""
        if self.cache is None:
            return self._keep(self._encode())
        ids = "\n".join(record.image_id for record in self.records)
        key = hashlib.sha256(f"{fingerprint(self.detector)} {self.input_size} {ids}".encode()).hexdigest()[:16]
        path = self.cache / f"features_{key}.safetensors"
        if not path.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            save_file(
                {f"level_{number}": level for number, level in enumerate(self._encode())}, path.with_suffix(".part")
            )
            path.with_suffix(".part").replace(path)
        return self._keep([level for _, level in sorted(read_safetensors(path, "file of features").items())])

    def _keep(self, levels: Sequence[Tensor]) -> KeptFeatures:
        return KeptFeatures(levels, self.detector.strides, self.input_size)

    @torch.no_grad()
    def _encode(self) -> list[Tensor]:
        kept: list[Tensor] = []
        for start in range(0, len(self), ENCODED_AT_ONCE):
            indices = range(start, min(start + ENCODED_AT_ONCE, len(self)))
            images = torch.stack([self.dataset[(0, index)].image for index in indices]).float() / 255
            for view, pixels in enumerate((images, images.flip(3))):
                levels = self.detector.features(pixels.contiguous(memory_format=torch.channels_last)).levels
                if not kept:
                    kept = [
                        torch.empty(VIEWS, len(self), *level.shape[2:], level.shape[1], dtype=torch.half)
                        for level in levels
                    ]
                for store, level in zip(kept, levels, strict=True):
                    store[view, indices.start : indices.stop] = level.permute(0, 2, 3, 1).half()
        return kept

    def annotated(self, index: int) -> Detections:
        """Return the true boxes of an image as detections of score 1."""
        return ground_truth_detections(self.targets[index])

    def jittered(self, index: int) -> Detections:
        """Return the true boxes moved to an IoU of 0.7 to 0.8, the same in every run."""
        true = self.annotated(index)
        generator = np.random.default_rng(JITTER_SEED + index)
        boxes = [jitter_box(box, self.input_size, generator) for box in true.boxes.double().numpy()]
        moved = torch.from_numpy(np.array(boxes).reshape(-1, 4)).to(true.boxes)
        return replace(true, boxes=moved)


def jitter_box(box: np.ndarray, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Move the sides of a box at random until the IoU of both lies in `JITTERED_IOU`; clip it to the image."""
    extent, limit = np.tile(box[2:] - box[:2], 2), np.array([size[1], size[0]] * 2)
    for _ in range(MAX_TRIES):
        moved = np.clip(box + generator.uniform(-0.3, 0.3, 4) * extent, 0, limit)
        overlap = np.clip(np.minimum(box[2:], moved[2:]) - np.maximum(box[:2], moved[:2]), 0, None).prod()
        union = (box[2:] - box[:2]).prod() + (moved[2:] - moved[:2]).prod() - overlap
        if JITTERED_IOU[0] <= overlap / union <= JITTERED_IOU[1]:
            return moved
    raise ValueError(f"no box with an IoU of {JITTERED_IOU} was found for {box.tolist()}, the box has no area")


def mirror_target(target: Target, width: int) -> Target:
    """Return the target of the image mirrored left to right."""
    x0, y0, x1, y1 = target.boxes.unbind(dim=1)
    return replace(
        target,
        boxes=torch.stack([width - x1, y0, width - x0, y1], dim=1),
        masks=None if target.masks is None else target.masks.flip(2),
        void=None if target.void is None else target.void.flip(1),
    )


@dataclass(frozen=True, eq=False)
class Study:
    """A data set as all methods see it.

    Attributes:
        name: name of the data set in the results.
        backbone: name of the weights in the results.
        train: training images.
        val: validation images.
        class_names: names by label, background first.
        main: labels of the reported classes.
        choice: the frozen detector.
        detector: the same, built.
        detections: detected boxes of each validation image, or None.
    """

    name: str
    backbone: str
    train: Photographs
    val: Photographs
    class_names: tuple[str, ...]
    main: tuple[int, ...]
    choice: DetectorChoice
    detector: FrozenDetector
    detections: tuple[Detections, ...] | None = None


@dataclass(frozen=True)
class Draw:
    """Images of a training step.

    Attributes:
        indices: indices of the images.
        mirrored: whether each is mirrored.
        seeds: one seed for each image.
    """

    indices: tuple[int, ...]
    mirrored: tuple[bool, ...]
    seeds: tuple[int, ...]


def make_batch(photographs: Photographs, targets: tuple[list[Target], list[Target]], draw: Draw) -> Batch:
    """Return the targets of a step as a batch without pixels: the features are kept.

    Args:
        photographs: the training images.
        targets: the targets of all images and of their mirror images, with the masks of the budget.
        draw: the images of the step.
    """
    chosen = zip(draw.indices, draw.mirrored, strict=True)
    return Batch(
        image_ids=tuple(photographs.records[index].image_id for index in draw.indices),
        images=torch.zeros(len(draw.indices), 3, 1, 1),
        targets=tuple(targets[mirrored][index] for index, mirrored in chosen),
        seeds=draw.seeds,
    )


def open_study(
    data: Path,
    name: str,
    backbone: str,
    choice: DetectorChoice,
    image_size: int,
    main: Sequence[str],
    cache: Path | None,
) -> Study:
    """Read a data set, build the frozen detector, and compute the features.

    Args:
        data: folder of the data set.
        name: its name in the results.
        backbone: name of the weights in the results.
        choice: the frozen detector.
        image_size: side of the network's input in pixels.
        main: names of the reported classes; empty reports all of them.
        cache: folder that keeps the features, or None.
    """
    module = MixedSupervisionDataModule(
        str(data), image_size=image_size, supervision="masks", mask_budget="all", augmentation="none"
    )
    module.setup()
    detector = choice.build(module.num_classes, module.class_names)
    unknown = sorted(set(main) - set(module.class_names[1:]))
    if unknown:
        raise SystemExit(f"{name}: the class '{unknown[0]}' is not among {', '.join(module.class_names[1:])}")
    labels = tuple(module.class_names.index(each) for each in main) or tuple(range(1, module.num_classes))
    train, val = Photographs(module.train_set(), detector, cache), Photographs(module.val_set(), detector, cache)
    detections = None
    if choice.checkpoint is not None and detector.learns_boxes:
        detections = tuple(detector.detect(val.features.pyramid([index], [False]))[0] for index in range(len(val)))
    return Study(name, backbone, train, val, module.class_names, labels, choice, detector, detections)
