"""Box average precision, COCO protocol (101-point interpolation, IoU 0.50:0.95)."""

from collections.abc import Mapping, Sequence

from dasnet_lightning.metrics.coco import CocoAP
from dasnet_lightning.metrics.coco_evaluators import Evaluator
from dasnet_lightning.metrics.matching import EvaluatedImage, as_array
from dasnet_lightning.types import Detections, Target

UNUSED_SIZE = (0, 0)  # box IoU does not depend on the image size


class BoxAP:
    """Metric that accumulates detections and targets; crowd and difficult objects and their matches are ignored.

    A repeated image id, from a padded sampler, counts once. All ranks must call `compute` and get the same values.

    Args:
        evaluator: the implementation of COCO's protocol (`metrics.coco_evaluators`); all give the same values.
    """

    def __init__(self, evaluator: Evaluator = "built-in") -> None:
        self._coco = CocoAP("bbox", evaluator)

    def update(self, image_ids: Sequence[str], detections: Sequence[Detections], targets: Sequence[Target]) -> None:
        """Add images with their detections, of which the best 100 of each class count, and their targets."""
        for image_id, image_detections, target in zip(image_ids, detections, targets, strict=True):
            self._coco.add(image_id, _evaluated_image(image_detections, target))

    def compute(self, class_names: Sequence[str] = ()) -> Mapping[str, float]:
        """Return the values of `summarize_coco`: `ap`, `ap50`, `ap75` and those of each class in `class_names`."""
        return self._coco.compute(class_names)

    def reset(self) -> None:
        self._coco.reset()


def _evaluated_image(detections: Detections, target: Target) -> EvaluatedImage:
    return EvaluatedImage(
        size=UNUSED_SIZE,
        labels=as_array(target.labels),
        shapes=as_array(target.boxes.double()),
        ignored=as_array(target.ignore),
        detected_labels=as_array(detections.labels),
        detected_scores=as_array(detections.scores.double()),
        detected_shapes=as_array(detections.boxes.double()),
    )
