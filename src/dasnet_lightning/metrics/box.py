"""Box average precision, COCO protocol (101-point interpolation, IoU 0.50:0.95)."""

from collections.abc import Mapping, Sequence

from dasnet_lightning.metrics.coco import CocoAP
from dasnet_lightning.metrics.coco_evaluators import Evaluator
from dasnet_lightning.metrics.matching import EvaluatedImage, as_array
from dasnet_lightning.types import Detections, Target

WITHOUT_PIXELS = (0, 0)  # boxes need no size of the image


class BoxAP:
    """Accumulates detections against ground truth; crowd and difficult objects neither count nor harm.

    An image id that comes again (samplers pad) counts once. All processes must call `compute`; all get the same figures.
    evaluator: the program that computes them, the same figures from each (metrics.coco_evaluators).
    """

    def __init__(self, evaluator: Evaluator = "built-in") -> None:
        self._coco = CocoAP("bbox", evaluator)

    def update(self, image_ids: Sequence[str], detections: Sequence[Detections], targets: Sequence[Target]) -> None:
        """Add images: what was detected in each, best 100 of a class counted, and what is there."""
        for image_id, found, target in zip(image_ids, detections, targets, strict=True):
            self._coco.add(image_id, _evaluated_image(found, target))

    def compute(self, class_names: Sequence[str] = ()) -> Mapping[str, float]:
        """AP averaged over IoU 0.50:0.95, AP50 and AP75, in 0..1, -1 where nothing was annotated; AP50 by class name."""
        return self._coco.compute(class_names)

    def reset(self) -> None:
        self._coco.reset()


def _evaluated_image(found: Detections, target: Target) -> EvaluatedImage:
    return EvaluatedImage(
        size=WITHOUT_PIXELS,
        labels=as_array(target.labels),
        shapes=as_array(target.boxes.double()),
        ignored=as_array(target.ignore),
        found_labels=as_array(found.labels),
        found_scores=as_array(found.scores.double()),
        found_shapes=as_array(found.boxes.double()),
    )
