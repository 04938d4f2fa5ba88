"""Boxes in the form that albumentations passes on, and back to pixels."""

import numpy as np
from jaxtyping import Float

from dasnet_lightning.errors import DataError


def clip_boxes(boxes: Float[np.ndarray, "n 4"], size: tuple[int, ...]) -> Float[np.ndarray, "n 4"]:
    """Clip boxes to an image of `size` (height, width). Raises DataError if a box has no area inside."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    clipped = np.clip(boxes, 0, (size[1], size[0], size[1], size[0]))
    valid = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)  # False for NaN too
    if not valid.all():
        first = int((~valid).argmax())
        raise DataError(
            f"object {first}: box {boxes[first].tolist()} has no area inside the image of {size[1]}x{size[0]} pixels, "
            "expected x0 < x1 and y0 < y1; correct or remove the annotation"
        )
    return np.asarray(clipped)


def to_unit(boxes: Float[np.ndarray, "n 4"], size: tuple[int, ...]) -> Float[np.ndarray, "n 5"]:
    """Convert boxes to the form that albumentations passes on: 0..1 in single precision, each with its index."""
    unit = boxes.astype(np.float32) / np.array((size[1], size[0], size[1], size[0]), float)
    return np.column_stack([unit, np.arange(len(boxes))]).astype(np.float32)


def from_unit(boxes: Float[np.ndarray, "v 5"], size: tuple[int, ...]) -> Float[np.ndarray, "v 5"]:
    """Convert boxes back to pixels, clip them, and drop those without area."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 5)
    sides = np.array((size[1], size[0], size[1], size[0]), float)
    pixels = boxes[:, :4] * sides
    large = (pixels[:, 2:] - pixels[:, :2]).prod(axis=1) >= 1e-7
    # to 0..1 and back once more, as albumentations rounds
    clipped = np.clip(pixels, 0, sides) / sides * sides
    return np.column_stack([clipped, boxes[:, 4]])[large]
