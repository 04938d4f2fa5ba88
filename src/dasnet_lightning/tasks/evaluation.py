"""What a validation of stage two measures with each kind of boxes: mIoU, mask AP, floors, and sorted errors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from dasnet_lightning.metrics.coco_evaluators import Evaluator
from dasnet_lightning.metrics.errors import ErrorLog
from dasnet_lightning.metrics.floors import FloorMetrics
from dasnet_lightning.metrics.instance import InstanceAP
from dasnet_lightning.metrics.semantic import SemanticIoU
from dasnet_lightning.types import Batch, Detections, Prediction

BOX_SOURCES = ("ground_truth_boxes", "detected_boxes")


class SourceMetrics(nn.Module):
    """Metrics of the predictions in the boxes of one source.

    The floors do not depend on the decoder. They are measured in the first validation and kept until `forget_floors`.

    Args:
        source: one of `BOX_SOURCES`, part of each metric's name.
        num_classes: number of classes with background.
        evaluator: the implementation of COCO's protocol (`metrics.coco_evaluators`).
    """

    def __init__(self, source: str, num_classes: int, evaluator: Evaluator) -> None:
        super().__init__()
        self.source = source
        self.iou = SemanticIoU(num_classes)
        self.floors = FloorMetrics(num_classes, evaluator)
        self.mask_ap = InstanceAP(evaluator)
        self.errors = ErrorLog()
        self._known_floors: Mapping[str, float] = {}

    def update(
        self,
        batch: Batch,
        boxes: Sequence[Detections],
        predictions: Sequence[Prediction],
        input_size: tuple[int, int],
        score_threshold: float,
    ) -> None:
        """Add images that have a ground truth.

        Args:
            batch: the images and their targets.
            boxes: the boxes that were segmented, in the order of the predictions, with the detector's scores.
            predictions: predictions at the size of the original images.
            input_size: (height, width) of the network input.
            score_threshold: boxes from this score on enter the class maps of the floors and the sorted errors.
        """
        self.mask_ap.update(batch.image_ids, predictions, batch.targets, input_size)
        shown = [item.scores >= score_threshold for item in boxes]
        self.errors.update(batch.image_ids, predictions, shown, batch.targets, input_size)
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if target.truth is not None:
                self.iou.update(prediction.semantic, target.truth.semantic)
        if not self._known_floors:
            self.floors.update(batch.image_ids, boxes, batch.targets, input_size, score_threshold)

    def compute(self, class_names: Sequence[str]) -> dict[str, float]:
        """Return mIoU and mask AP by name, over all ranks."""
        values = dict(self.iou.by_class(class_names)) | dict(self.mask_ap.compute(class_names))
        return {_metric_key(name, self.source): value for name, value in values.items()}

    def compute_floors(self, class_names: Sequence[str]) -> Mapping[str, float]:
        """Return the same metrics of filled boxes, with the shape before each name, over all ranks."""
        if not self._known_floors:
            self._known_floors = {
                _metric_key(f"{shape}_{name}", self.source): value
                for shape, values in self.floors.compute(class_names).items()
                for name, value in values.items()
            }
        return self._known_floors

    def compute_errors(self) -> dict[str, Any]:
        """Return the errors, sorted and counted over all ranks (`metrics.errors.summarize_errors`)."""
        return self.errors.compute()

    def reset(self) -> None:
        """Forget all images, and keep the values of the floors."""
        for metric in (self.iou, self.mask_ap, self.errors, self.floors):
            metric.reset()

    def forget_floors(self) -> None:
        """Measure the floors again in the next validation, because images or boxes may be others."""
        self._known_floors = {}


class ValidationMetrics(nn.Module):
    """The metrics of both sources of boxes; iterates over them in the order of `BOX_SOURCES`.

    Args:
        num_classes: number of classes with background.
        evaluator: the implementation of COCO's protocol (`metrics.coco_evaluators`).
    """

    def __init__(self, num_classes: int, evaluator: Evaluator) -> None:
        super().__init__()
        self.sources = nn.ModuleDict({source: SourceMetrics(source, num_classes, evaluator) for source in BOX_SOURCES})

    def __iter__(self) -> Iterator[SourceMetrics]:
        """Iterate over the metrics of each source."""
        return (metrics for metrics in self.sources.children() if isinstance(metrics, SourceMetrics))

    def forget_floors(self) -> None:
        """See `SourceMetrics.forget_floors`."""
        for metrics in self:
            metrics.forget_floors()


def _metric_key(name: str, source: str) -> str:
    """Return val/NAME_SOURCE, or val/NAME_SOURCE/CLASS for a metric NAME/CLASS."""
    name, slash, class_name = name.partition("/")
    return f"val/{name}_{source}{slash}{class_name}"
