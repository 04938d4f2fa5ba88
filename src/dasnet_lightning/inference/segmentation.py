"""Result of inference on one image, in its own pixels, with drawing and export to COCO results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from dasnet_lightning import visualization
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.rle import encode_mask


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Objects and class map of one image, on the CPU.

    Attributes:
        image: the RGB image.
        boxes: xyxy in pixels of the image.
        labels: indices into `class_names`.
        scores: scores in 0..1.
        masks: one mask for each object.
        semantic: the class of each pixel, 0 for background.
        class_names: names of the classes, background first.
        category_ids: the data set's id of each class for exports, as long as `class_names`; entry 0 is not used. None
            exports the labels.

    Raises:
        ValueError: if the shapes or lengths do not match.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]
    masks: Bool[Tensor, "n H W"]
    semantic: Int64[Tensor, "H W"]
    class_names: tuple[str, ...]
    category_ids: tuple[int | str, ...] | None = None

    def __post_init__(self) -> None:
        height, width, count = *self.image.shape[:2], len(self.boxes)
        expected = {
            "image": (height, width, 3),
            "boxes": (count, 4),
            "labels": (count,),
            "scores": (count,),
            "masks": (count, height, width),
            "semantic": (height, width),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")
        if self.category_ids is not None and len(self.category_ids) != len(self.class_names):
            raise ValueError(
                f"category_ids has {len(self.category_ids)} entries, expected one for each of the "
                f"{len(self.class_names)} class names"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def draw(self, semantic: bool = False) -> Image.Image:
        """Draw the objects, or the class map, on the image; small images are enlarged."""
        scale = visualization.readable_scale(self.image)
        if semantic:
            return Image.fromarray(
                visualization.draw_semantic(self.image, self.semantic, self.class_names, scale=scale)
            )
        picture = visualization.draw_segmentation(
            self.image, self.boxes, self.labels, self.scores, self.masks, self.class_names, scale=scale
        )
        return Image.fromarray(picture)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Return the objects as COCO results, for `json.dump` and pycocotools' `loadRes`."""
        results = []
        for box, label, score, mask in zip(
            self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), self.masks.numpy(), strict=True
        ):
            results.append(
                {
                    "image_id": image_id,
                    "category_id": label if self.category_ids is None else self.category_ids[label],
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "score": score,
                    "segmentation": {"size": list(mask.shape), "counts": encode_mask(mask).decode("ascii")},
                }
            )
        return results

    def save(self, path: str | Path, semantic: bool = False) -> None:
        """Save the drawing in the format of the suffix; raise ConfigError for an unknown suffix."""
        suffix = Path(path).suffix.lower()
        if suffix not in Image.registered_extensions():
            raise ConfigError(f"{path}: '{suffix}' is not an image format, use .png or .jpg")
        self.draw(semantic).save(path)
