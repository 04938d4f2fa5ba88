"""What `Trainer.predict` returns for each image: boxes and masks in the image's own pixels, on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dasnet_lightning.functional.boxes import restore_boxes
from dasnet_lightning.mask_windows import MaskWindows
from dasnet_lightning.tasks.step_helpers import build_refinement
from dasnet_lightning.types import Batch, Detections, Prediction


@dataclass(frozen=True, eq=False)
class ImagePrediction:
    """Objects of one image, as `inference.Segmentation` has them, without the image.

    Attributes:
        image_id: id of the image; in a folder its path relative to the folder.
        boxes: xyxy in pixels of the image.
        labels: indices into `class_names`.
        scores: scores in 0..1, in descending order.
        class_names: names of the classes, background first.
        windows: the masks in little memory; None for a detector alone.
        semantic: the class of each pixel, 0 for background; None for a detector alone.
    """

    image_id: str
    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]
    class_names: tuple[str, ...]
    windows: MaskWindows | None = None
    semantic: Int64[Tensor, "H W"] | None = None

    def to(self, device: torch.device | str) -> "ImagePrediction":
        """Return itself: Lightning asks for predictions on the CPU, where they are."""
        return self

    @property
    def masks(self) -> Bool[Tensor, "n H W"]:
        """One mask for each object. Raises ValueError for the prediction of a detector alone."""
        if self.windows is None:
            raise ValueError(f"{self.image_id}: a detector predicts no masks, train stage two")
        return self.windows.dense()


def collect_predictions(
    batch: Batch,
    detections: Sequence[Detections],
    predictions: Sequence[Prediction] | None,
    class_names: Sequence[str],
) -> list[ImagePrediction]:
    """Return the predictions of a batch in the pixels of its images.

    Args:
        batch: the images, with their sizes.
        detections: the objects of each image in input pixels.
        predictions: their masks and class maps at the size of the images; None for a detector alone.
        class_names: background first.
    """
    input_size = (batch.images.shape[2], batch.images.shape[3])
    collected = []
    for number, (image_id, found, size) in enumerate(zip(batch.image_ids, detections, batch.sizes, strict=True)):
        order = torch.argsort(found.scores, descending=True, stable=True).cpu()
        windows = semantic = None
        if predictions is not None:
            windows = MaskWindows.of(predictions[number].masks).select(order.tolist())
            semantic = predictions[number].semantic.cpu()
        boxes = restore_boxes(found.boxes, input_size, size).cpu()[order]
        labels, scores = found.labels.cpu()[order], found.scores.cpu()[order]
        collected.append(ImagePrediction(image_id, boxes, labels, scores, tuple(class_names), windows, semantic))
    return collected


@torch.no_grad()
def predict_images(task: Any, batch: Batch, batch_index: int) -> list[ImagePrediction]:
    """Return the detected objects of each image, as `Segmenter.segment` shows them; the `predict_step` of stage two.

    Args:
        task: a SegmentationTask.
        batch: the images, with their sizes.
        batch_index: not read.
    """
    features = task.model.detector.features
    pyramid = features(batch.images)
    detections = []
    for found in task.model.detector.detect(pyramid):
        shown = found.scores >= task.score_threshold
        detections.append(Detections(found.boxes[shown], found.labels[shown], found.scores[shown]))
    refinement = build_refinement(task.inference, features, batch.images, batch.sizes)
    predictions = task.predict(pyramid, detections, batch.sizes, refinement=refinement)
    return collect_predictions(batch, [item.detections for item in predictions], predictions, task.class_names)
