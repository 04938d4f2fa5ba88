"""Random images with objects, crowds, missing masks, void pixels and all sorts of right and wrong predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dasnet_lightning.rle import encode
from dasnet_lightning.types import Detections, GroundTruth, Prediction, Target

NAMES = ("background", "a", "b", "c", "never")
SIZE, INPUT_SIZE = (24, 36), (48, 90)  # of the image and of the network's input
VOID_ROWS = 3


@dataclass(frozen=True, eq=False)
class Dense:
    """One image as plain dense arrays, in the original image's pixels; `boxes` are whole numbers."""

    labels: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    has_mask: np.ndarray
    crowd: np.ndarray
    void: np.ndarray
    detected_labels: np.ndarray
    detected_scores: np.ndarray
    detected_masks: np.ndarray


def rectangle(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def random_image(rng: np.random.Generator) -> Dense:
    """Up to 5 objects and 12 predictions; scores repeat, so that the order of equal ones matters."""
    count = int(rng.integers(0, 6))
    corners = rng.integers((0, VOID_ROWS), (26, 16), (count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(5, 9, (count, 2))], axis=1)
    masks = np.stack([np.zeros(SIZE, bool)] + [rectangle(*box) & (rng.random(SIZE) < 0.9) for box in boxes])[1:]
    labels = rng.integers(1, 4, count)
    detected_masks, detected_labels = [rectangle(5, 0, 12, 5), np.zeros(SIZE, bool)], [1, 2]  # half void, empty
    for _ in range(int(rng.integers(0, 11))):
        near = int(rng.integers(0, count)) if count and rng.random() < 0.8 else None
        base = rectangle(*rng.integers(0, 12, 2), 20, 20) if near is None else masks[near]
        shifted = np.roll(base, rng.integers(-1, 2), rng.integers(0, 2)) & (rng.random(SIZE) < rng.uniform(0.6, 1.0))
        detected_masks.append(shifted)
        detected_labels.append(int(rng.integers(1, 4)) if near is None or rng.random() < 0.1 else int(labels[near]))
    return Dense(
        labels=labels,
        masks=masks,
        boxes=boxes.reshape(-1, 4),
        has_mask=rng.random(count) < 0.8,
        crowd=rng.random(count) < 0.15,
        void=rectangle(0, 0, SIZE[1], VOID_ROWS),
        detected_labels=np.array(detected_labels),
        detected_scores=rng.integers(1, 8, len(detected_labels)) / 8,
        detected_masks=np.stack(detected_masks),
    )


def prediction_of(image: Dense) -> Prediction:
    scores = torch.tensor(image.detected_scores, dtype=torch.float32)
    return make_prediction(torch.tensor(image.detected_labels), scores, torch.tensor(image.detected_masks))


def make_prediction(labels: Tensor, scores: Tensor, masks: Tensor) -> Prediction:
    """Without boxes and without a class map, which no mask metric reads."""
    nothing = torch.zeros(masks.shape[1:], dtype=torch.int64)
    return Prediction(Detections(torch.zeros(len(labels), 4), labels, scores), masks, nothing)


def target_of(image: Dense) -> Target:
    """With boxes in the pixels of the network's input."""
    scale = np.array([INPUT_SIZE[1] / SIZE[1], INPUT_SIZE[0] / SIZE[0]] * 2)
    counts = tuple(item if has else None for item, has in zip(encode(image.masks), image.has_mask, strict=True))
    return Target(
        boxes=torch.tensor(image.boxes * scale, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(image.labels, dtype=torch.int64),
        has_mask=torch.tensor(image.has_mask),
        ignore=torch.tensor(image.crowd),
        truth=GroundTruth(torch.zeros(SIZE, dtype=torch.uint8), counts, encode(image.void[None])[0]),
    )


def make_image(
    objects: Sequence[tuple[int, np.ndarray]],
    found: Sequence[tuple[int, float, np.ndarray]],
    missing: Sequence[int] = (),
    crowd: Sequence[int] = (),
    void: np.ndarray | None = None,
) -> Dense:
    """An image of (label, mask) objects and (label, score, mask) predictions; missing and crowd name objects."""
    masks = np.array([mask for _, mask in objects], dtype=bool).reshape(-1, *SIZE)
    extents = [(np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))) for mask in masks]
    return Dense(
        labels=np.array([label for label, _ in objects], dtype=np.int64),
        masks=masks,
        boxes=np.array([(x[0], y[0], x[-1] + 1, y[-1] + 1) for x, y in extents]).reshape(-1, 4),
        has_mask=np.array([index not in missing for index in range(len(objects))], dtype=bool),
        crowd=np.array([index in crowd for index in range(len(objects))], dtype=bool),
        void=np.zeros(SIZE, dtype=bool) if void is None else void,
        detected_labels=np.array([label for label, _, _ in found], dtype=np.int64),
        detected_scores=np.array([score for _, score, _ in found], dtype=np.float64),
        detected_masks=np.array([mask for _, _, mask in found], dtype=bool).reshape(-1, *SIZE),
    )
