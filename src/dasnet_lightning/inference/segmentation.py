"""What inference answers for one image, in that image's own pixels: drawn, saved, or exported as COCO results."""

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
    """The objects and the class map of one image; all tensors on the CPU.

    boxes are xyxy in pixels, labels index `class_names` (0 is background), `masks[i]` is the shape of object i, and
    `semantic` holds the class of every pixel. `category_ids[label]` is the data set's own id of a class, for exports;
    it is as long as `class_names` and its entry 0 is not read. None: the label is the id.
    Raises ValueError where the shapes do not fit together.
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
                f"{len(self.category_ids)} category ids for {len(self.class_names)} classes with background"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def draw(self, semantic: bool = False) -> Image.Image:
        """The image with its objects, or with its class map; small images are enlarged to be readable."""
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
        """The objects as COCO results, ready for `json.dump` and for pycocotools' `loadRes`."""
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
        """Write the drawing; the suffix chooses the format. Raises ConfigError for a suffix that is no picture's."""
        suffix = Path(path).suffix.lower()
        if suffix not in Image.registered_extensions():
            raise ConfigError(f"{path}: '{suffix}' is no picture format, name the file .png or .jpg")
        self.draw(semantic).save(path)
