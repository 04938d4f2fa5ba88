"""Average precision of instance masks: mAP^r after VOC and SDS, and COCO's mask AP, with what is unknown left out.

Every figure names its protocol, for the same detections differ by several points between them. The rules of the unknown:
void pixels are taken out of the predictions before anything else, and a prediction with more than half of its pixels
void is not counted. A missing mask is missing: the object is no rectangle to be matched, its box is an ignored region
of its class, as a crowd's mask is; a class whose objects all lack masks enters no mean. A prediction without pixels
matches nothing and counts as false.
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
from dasnet_lightning.metrics.voc_ap import class_figures, summarize_regions
from dasnet_lightning.rle import areas, decode, encode, intersect
from dasnet_lightning.types import GroundTruth, Prediction, Target

SLACK = 0.01  # pixels: a box that went to the input's size and back touches no pixel for that


class InstanceAP:
    """Accumulates predicted instances against ground truth, as run lengths: never dense masks of a set.

    An image id that comes again (samplers pad) counts once. All processes must call `compute`; all get the same figures.
    evaluator: the program that computes COCO's, the same figures from each (metrics.coco_evaluators).
    """

    def __init__(self, evaluator: Evaluator = "built-in") -> None:
        check_evaluator(evaluator)
        self.evaluator: Evaluator = evaluator
        self._scenes: dict[str, EvaluatedImage] = {}

    def update(
        self,
        image_ids: Sequence[str],
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        input_size: tuple[int, int],
    ) -> None:
        """Add images; those whose target has no `truth` are skipped.

        input_size: (height, width) of the network's input, in whose pixels the targets' boxes are. Raises ValueError
        where predicted masks do not have the size of the original image.
        """
        for image_id, prediction, target in zip(image_ids, predictions, targets, strict=True):
            if target.truth is not None and image_id not in self._scenes:
                self._scenes[image_id] = _evaluated_image(prediction, target, target.truth, input_size)

    def compute(self, class_names: Sequence[str] = ()) -> Mapping[str, float]:
        """Figures in 0..1, -1 where no mask was annotated: those of `summarize_regions`, and COCO's as `coco_...`."""
        return evaluate_gathered(self._scenes, partial(_summarize, class_names=class_names, evaluator=self.evaluator))

    def reset(self) -> None:
        self._scenes.clear()


def _summarize(
    scenes: Mapping[str, EvaluatedImage], class_names: Sequence[str], evaluator: Evaluator
) -> dict[str, float]:
    regions, precision = {}, {}
    for label, pairs in compare_by_class(scenes):
        regions[label] = class_figures(pairs)
        precision[label] = class_precision(pairs) if evaluator == "built-in" else None
    if evaluator == "built-in":
        coco = summarize_coco(precision, class_names)
    else:
        coco = evaluate_coco(scenes, "segm", class_names, evaluator)
    return summarize_regions(regions, class_names) | {f"coco_{name}": value for name, value in coco.items()}


def _evaluated_image(
    prediction: Prediction, target: Target, truth: GroundTruth, input_size: tuple[int, int]
) -> EvaluatedImage:
    size = (truth.semantic.shape[0], truth.semantic.shape[1])
    if tuple(prediction.masks.shape[1:]) != size:
        raise ValueError(
            f"masks of {tuple(prediction.masks.shape[1:])} pixels for an image of {size}: expected the same"
        )
    found, counted = remove_void(encode(prediction.masks), truth.void, size)
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
        found_labels=as_array(prediction.detections.labels)[counted],
        found_scores=as_array(prediction.detections.scores.double())[counted],
        found_shapes=tuple(itertools.compress(found, counted)),
    )


def remove_void(
    counts: Sequence[bytes], void: bytes | None, size: tuple[int, int]
) -> tuple[list[bytes], Bool[np.ndarray, " n"]]:
    """The masks without their void pixels, and which of them count: those that were void by half or less."""
    if void is None:
        return list(counts), np.ones(len(counts), dtype=bool)
    known = encode(~decode([void], size))[0]
    remaining = intersect(counts, known, size)
    return remaining, 2 * areas(remaining, size) >= areas(counts, size)


def fill_box(box: Float[Tensor, " 4"], size: tuple[int, int]) -> bytes:
    """The run-length counts of every pixel that an xyxy box touches, in an image of `size` (height, width)."""
    x0, y0 = (max(int(edge), 0) for edge in (box[:2] + SLACK).floor().tolist())
    x1, y1 = (int(edge) for edge in (box[2:] - SLACK).ceil().tolist())
    mask = np.zeros((1, *size), dtype=bool)
    mask[:, y0:y1, x0:x1] = True
    return encode(mask)[0]
