"""Result of inference on one image, in its own pixels, with drawing and export to COCO results."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from dasnet_lightning import visualization
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.mask_windows import MaskWindows
from dasnet_lightning.rle import encode_mask

if TYPE_CHECKING:
    from dasnet_lightning.data.writers.base import ImageLabels


class MaskField:
    """Field that holds masks in little memory and returns them as a tensor [n, H, W] on each access."""

    @overload
    def __get__(self, instance: None, owner: type) -> Any: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Bool[Tensor, "n H W"]: ...

    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            raise AttributeError("masks")  # tells dataclasses that the field has no default
        return instance.__dict__["mask_windows"].dense()

    def __set__(self, instance: object, value: Bool[Tensor, "n H W"] | MaskWindows) -> None:
        if not isinstance(value, MaskWindows) and value.ndim != 3:
            raise ValueError(f"masks has shape {tuple(value.shape)}, expected (n, H, W)")
        instance.__dict__["mask_windows"] = value if isinstance(value, MaskWindows) else MaskWindows.of(value)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Objects and class map of one image, on the CPU.

    Attributes:
        image: the RGB image.
        boxes: xyxy in pixels of the image.
        labels: indices into `class_names`.
        scores: scores in 0..1.
        masks: one mask for each object. They are kept as `MaskWindows`, a bit for each pixel of a box, and made into a
            tensor of n x H x W bytes on each access; `windows` has them without that.
        semantic: the class of each pixel, 0 for background.
        class_names: names of the classes, background first.
        category_ids: the data set's id of each class for exports, as long as `class_names`; entry 0 is not used. None
            exports the labels.
        quality: the IoU with the true mask that the probabilities of each mask let expect, 0..1, not calibrated. None if
            unknown.

    Raises:
        ValueError: if the shapes or lengths do not match.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]
    semantic: Int64[Tensor, "H W"]
    class_names: tuple[str, ...]
    masks: MaskField = MaskField()
    category_ids: tuple[int | str, ...] | None = None
    quality: Float[Tensor, " n"] | None = None

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
        expected |= {} if self.quality is None else {"quality": (count,)}
        for name, shape in expected.items():
            value = self.__dict__["mask_windows" if name == "masks" else name]
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")
        if self.category_ids is not None and len(self.category_ids) != len(self.class_names):
            raise ValueError(
                f"category_ids has {len(self.category_ids)} entries, expected one for each of the "
                f"{len(self.class_names)} class names"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def windows(self) -> MaskWindows:
        """The masks as they are kept."""
        windows: MaskWindows = self.__dict__["mask_windows"]
        return windows

    def draw(self, semantic: bool = False) -> Image.Image:
        """Draw the objects, or the class map, on the image; small images are enlarged."""
        scale = visualization.readable_scale(self.image)
        if semantic:
            return Image.fromarray(
                visualization.draw_semantic(self.image, self.semantic, self.class_names, scale=scale)
            )
        picture = visualization.draw_segmentation(
            self.image, self.boxes, self.labels, self.scores, self.windows, self.class_names, scale=scale
        )
        return Image.fromarray(picture)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Return the objects as COCO results, for `json.dump` and pycocotools' `loadRes`."""
        results = []
        for box, label, score, mask in zip(
            self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), self.windows, strict=True
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

    def to_polygons(self, tolerance: float = 1.0) -> list[list[Float[np.ndarray, "v 2"]]]:
        """Return the polygons of each object, one for each part of its mask, in pixels of the image.

        Args:
            tolerance: distance in pixels by which a polygon may leave the outline of the mask; 0 traces every pixel.
        """
        from dasnet_lightning.data.writers.outlines import trace_mask

        return [trace_mask(mask, tolerance) for mask in self.windows]

    def to_labelme(self, path: str | Path, tolerance: float = 1.0) -> dict[str, Any]:
        """Return the content of the labelme file of an image, its masks marked as made by a model.

        Args:
            path: the image file.
            tolerance: see `to_polygons`.
        """
        from dasnet_lightning.data.writers.labelme import labelme_content

        return labelme_content(self._labels(Path(path).name, tolerance), self.class_names)

    def to_yolo(self, tolerance: float = 1.0) -> list[str]:
        """Return the row of each object in a YOLO label file; class 0 is the first one after the background.

        Args:
            tolerance: see `to_polygons`.
        """
        from dasnet_lightning.data.writers.yolo import yolo_row

        labels = self._labels("image", tolerance)
        return [yolo_row(labels, item) for item in labels.objects]

    def to_supervision(self) -> Any:
        """Return the objects as `supervision.Detections`, whose `class_id` is the label.

        Raises:
            ConfigError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ConfigError("supervision is not installed, run: pip install supervision") from error
        names = np.array([self.class_names[label] for label in self.labels.tolist()], dtype=str)
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=self.masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": names},
        )

    def _labels(self, name: str, tolerance: float) -> "ImageLabels":
        """Return the objects as the writers of data sets take them; an empty mask is a missing one."""
        from dasnet_lightning.data.writers.base import ImageLabels, ObjectLabel

        qualities = self.scores if self.quality is None else self.quality
        boxes = zip(self.boxes.tolist(), self.labels.tolist(), qualities.tolist(), self.windows, strict=True)
        objects = tuple(
            ObjectLabel(
                object_id=str(number),
                box=(box[0], box[1], box[2], box[3]),
                label=label,
                mask=encode_mask(mask) if mask.any() else None,
                by_model=bool(mask.any()),
                quality=round(quality, 4),
                tolerance=tolerance,
            )
            for number, (box, label, quality, mask) in enumerate(boxes)
        )
        return ImageLabels(name, name, (self.image.shape[0], self.image.shape[1]), objects)

    def save(self, path: str | Path, semantic: bool = False) -> None:
        """Save the drawing in the format of the suffix; raise ConfigError for an unknown suffix."""
        suffix = Path(path).suffix.lower()
        if suffix not in Image.registered_extensions():
            raise ConfigError(f"{path}: '{suffix}' is not an image format, use .png or .jpg")
        self.draw(semantic).save(path)
