"""A detector with all that could move when frozen (BatchNorm, dropout), small enough to train in a test."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.rle import encode
from dasnet_lightning.types import Batch, Detections, GroundTruth, Pyramid, Target


class ToyDetector(Detector):
    """Two levels at strides 4 and 8; detects one centred box of class 1 in every image."""

    def __init__(self, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_size = (32, 32)
        self.strides = (4, 8)
        self.out_channels = (8, 12)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(dropout))
        self.score = nn.Linear(12, 1)

    def features(self, images: Tensor) -> Pyramid:
        fine = self.stem(images - 0.5)
        return Pyramid((fine, self.deep(fine)), self.strides, (images.shape[2], images.shape[3]))

    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        height, width = pyramid.size
        box = torch.tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]])
        scores = self.score(pyramid.levels[1].mean(dim=(2, 3))).sigmoid()
        return tuple(Detections(box, torch.ones(1, dtype=torch.int64), score.clamp(min=0.6)) for score in scores)

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Tensor]:
        counts = torch.tensor([float(len(target.labels)) for target in targets])
        predicted = self.score(pyramid.levels[1].mean(dim=(2, 3)))[:, 0]
        return {"count": (predicted - counts).square().mean()}


def make_target(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    has_mask: Sequence[bool] | None = None,
    size: tuple[int, int] = (32, 32),
) -> Target:
    """Objects that fill their boxes; those without a mask have none, and no mask at all is None."""
    known = torch.tensor([True] * len(labels) if has_mask is None else list(has_mask), dtype=torch.bool)
    masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        masks[index, int(y0) : int(y1), int(x0) : int(x1)] = bool(known[index])
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        has_mask=known,
        ignore=torch.zeros(len(labels), dtype=torch.bool),
        masks=masks if known.any() else None,
        truth=make_truth(masks, labels, known),
    )


def make_truth(masks: Tensor, labels: Sequence[int], known: Tensor) -> GroundTruth | None:
    """As data sets give it for an image of the network's size: none where there are objects but no mask."""
    if len(labels) and not known.any():
        return None
    semantic = torch.zeros(masks.shape[1:], dtype=torch.uint8)
    for mask, label in zip(masks, labels, strict=True):
        semantic[mask] = label
    return GroundTruth(
        semantic, tuple(counts if has else None for counts, has in zip(encode(masks), known, strict=True))
    )


def make_batch(targets: Sequence[Target], size: tuple[int, int] = (32, 32), seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        image_ids=tuple(f"image{index}" for index in range(len(targets))),
        images=torch.rand(len(targets), 3, *size, generator=generator),
        targets=tuple(targets),
        seeds=tuple(range(seed, seed + len(targets))),
    )
