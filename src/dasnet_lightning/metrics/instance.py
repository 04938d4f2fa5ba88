"""Average precision of instance masks: VOC's mAP^r (after SDS) and COCO's mask AP, where unknown pixels do not count.

Every metric name includes its protocol, because protocols differ by several points on the same predictions. Rules:

* Void pixels are first removed from the predictions. A prediction with more than half of its pixels void does not count.
* A missing mask is missing, never a rectangle to match. The box of the object is an ignored region of its class, like
  the mask of a crowd. A class whose objects all lack masks enters no mean.
* An empty prediction matches nothing and is a false positive.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dasnet_lightning.distributed import evaluate_gathered
from dasnet_lightning.metrics.coco import class_precision, evaluate_coco, summarize_coco
from dasnet_lightning.metrics.coco_evaluators import Evaluator, check_evaluator
from dasnet_lightning.metrics.matching import EvaluatedImage, as_array, compare_by_class
from dasnet_lightning.metrics.voc_ap import class_region_ap, summarize_regions
from dasnet_lightning.rle import areas, decode, encode, intersect
from dasnet_lightning.types import GroundTruth, Prediction, Target

SLACK = 0.01  # pixels; rounding of a box that was resized to the input and back must not add pixels


class InstanceAP:
    """Metric that accumulates predicted and true instances as run-length counts, never as dense masks.

    A repeated image id, from a padded sampler, counts once. All ranks must call `compute` and get the same values.

    Args:
        evaluator: the implementation of COCO's protocol (`metrics.coco_evaluators`); all give the same values.
    """

    def __init__(self, evaluator: Evaluator = "built-in") -> None:
        check_evaluator(evaluator)
        self.evaluator: Evaluator = evaluator
        self._images: dict[str, EvaluatedImage] = {}

    def update(
        self,
        image_ids: Sequence[str],
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        input_size: tuple[int, int],
    ) -> None:
        """Add images; an image whose target has no `truth` is skipped.

        Args:
            image_ids: the id of each image.
            predictions: predictions at the size of the original images.
            targets: targets with boxes in pixels of the network input.
            input_size: (height, width) of the network input.

        Raises:
            ValueError: if the predicted masks do not have the size of the original image.
        """
        for image_id, prediction, target in zip(image_ids, predictions, targets, strict=True):
            if target.truth is not None and image_id not in self._images:
                self._images[image_id] = _evaluated_image(prediction, target, target.truth, input_size)

    def compute(self, class_names: Sequence[str] = ()) -> Mapping[str, float]:
        """Return the values of `summarize_regions`, and those of `summarize_coco` with the prefix `coco_`."""
        return evaluate_gathered(self._images, partial(_summarize, class_names=class_names, evaluator=self.evaluator))

    def reset(self) -> None:
        self._images.clear()


def _summarize(
    images: Mapping[str, EvaluatedImage], class_names: Sequence[str], evaluator: Evaluator
) -> dict[str, float]:
    region_ap, precision = {}, {}
    for label, comparisons in compare_by_class(images):
        region_ap[label] = class_region_ap(comparisons)
        precision[label] = class_precision(comparisons) if evaluator == "built-in" else None
    if evaluator == "built-in":
        coco = summarize_coco(precision, class_names)
    else:
        coco = evaluate_coco(images, "segm", class_names, evaluator)
    return summarize_regions(region_ap, class_names) | {f"coco_{name}": value for name, value in coco.items()}


def _evaluated_image(
    prediction: Prediction, target: Target, truth: GroundTruth, input_size: tuple[int, int]
) -> EvaluatedImage:
    size = (truth.semantic.shape[0], truth.semantic.shape[1])
    if tuple(prediction.masks.shape[1:]) != size:
        raise ValueError(
            f"predicted masks have size {tuple(prediction.masks.shape[1:])}, expected the size of the image, {size}"
        )
    mask_counts, counted = remove_void(encode(prediction.masks), truth.void, size)
    missing = np.array([counts is None for counts in truth.masks], dtype=bool)
    scale = torch.tensor([size[1] / input_size[1], size[0] / input_size[0]] * 2, dtype=torch.float64)
    boxes = target.boxes.cpu().double() * scale
    return EvaluatedImage(
        size=size,
        labels=as_array(target.labels),
        shapes=tuple(
            fill_box(box, size) if counts is None else counts for box, counts in zip(boxes, truth.masks, strict=True)
        ),
        ignored=as_array(target.ignore) | missing,
        detected_labels=as_array(prediction.detections.labels)[counted],
        detected_scores=as_array(prediction.detections.scores.double())[counted],
        detected_shapes=tuple(itertools.compress(mask_counts, counted)),
    )


def remove_void(
    counts: Sequence[bytes], void: bytes | None, size: tuple[int, int]
) -> tuple[list[bytes], Bool[np.ndarray, " n"]]:
    """Return the masks without void pixels, and which of them count: those of which at most half was void."""
    if void is None:
        return list(counts), np.ones(len(counts), dtype=bool)
    known = encode(~decode([void], size))[0]
    remaining = intersect(counts, known, size)
    return remaining, 2 * areas(remaining, size) >= areas(counts, size)


def fill_box(box: Float[Tensor, " 4"], size: tuple[int, int]) -> bytes:
    """Return the run-length counts of all pixels that an xyxy box touches in an image of `size` (height, width)."""
    x0, y0 = (max(int(edge), 0) for edge in (box[:2] + SLACK).floor().tolist())
    x1, y1 = (int(edge) for edge in (box[2:] - SLACK).ceil().tolist())
    mask = np.zeros((1, *size), dtype=bool)
    mask[:, y0:y1, x0:x1] = True
    return encode(mask)[0]
