"""What all methods share: the interface, the training loop, and masks from the logits of grids."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from dasnet_lightning.functional.box_grids import box_windows_of, read_grid
from dasnet_lightning.functional.boxes import pixel_windows, restore_boxes
from dasnet_lightning.functional.mask_quality import estimate_iou
from dasnet_lightning.functional.regions import best_detections
from dasnet_lightning.mask_windows import MaskWindows
from dasnet_lightning.models.box_scores import BoxScores
from dasnet_lightning.models.instance import ClassMap, InstanceOptions
from dasnet_lightning.types import Batch, Detections, Prediction

from .budgets import MaskedObjects, limited_targets
from .data import Draw, Photographs, Study, make_batch

OPTIONS = InstanceOptions()
BATCH_SIZE = 8
RATE, DECAY = 2e-3, 1e-3
WARMUP = 0.15
START_SHARE, END_SHARE = 0.04, 1e-3


@dataclass(frozen=True)
class Extras:
    """Refinement at test time."""

    flip: bool = False
    guided_filter: bool = False


PLAIN = Extras()


class Learner(nn.Module):
    """A method: its trainable parts, its loss, and its masks. Methods without training have no loss."""

    semantic_only = False

    def __init__(self, study: Study) -> None:
        super().__init__()
        self.study = study

    def prepare(self, masked: MaskedObjects) -> None:
        """Compute what stays the same in all steps; its time is not that of the training."""

    def loss(self, batch: Batch, draw: Draw) -> Tensor:
        """Return the loss of a step."""
        raise NotImplementedError

    def predict(self, index: int, detections: Detections, given: bool, extras: Extras = PLAIN) -> Prediction:
        """Return the masks of a validation image.

        Args:
            index: index of the image.
            detections: the boxes, in pixels of the network's input.
            given: the boxes are exact, so that masks end at them.
            extras: refinement at test time; only our decoders have it.
        """
        raise NotImplementedError


class GridLearner(Learner):
    """A method that scores the cells of a grid over each box, the box wider by `margin` on each side."""

    margin = 0.0

    def logits(self, index: int, detections: Detections) -> Tensor:
        """Return the logits [n, g, g] of the boxes of a validation image."""
        raise NotImplementedError

    def predict(self, index: int, detections: Detections, given: bool, extras: Extras = PLAIN) -> Prediction:
        """See `Learner.predict`."""
        selected = select_detections(detections, given)
        if not len(selected.labels):
            return empty_prediction(self.study.val, index, selected)
        logits = self.logits(index, selected).float()
        return assemble(self.study.val, index, selected, logits, self.margin, given)


def select_detections(detections: Detections, given: bool) -> Detections:
    """Return the boxes that get a mask: all given ones, else the best."""
    return detections if given else best_detections(detections, OPTIONS.lowest_score, OPTIONS.max_detections)


def empty_prediction(photographs: Photographs, index: int, detections: Detections) -> Prediction:
    """Return a prediction without any pixel."""
    size = photographs.records[index].size
    masks = torch.zeros(len(detections.labels), *size, dtype=torch.bool)
    return Prediction(detections, masks, torch.zeros(size, dtype=torch.int64))


def assemble(
    photographs: Photographs, index: int, detections: Detections, logits: Tensor, margin: float, clip: bool
) -> Prediction:
    """Read the grids in the pixels of the photograph, as our decoders of boxes do.

    Args:
        photographs: the validation images.
        index: index of the image.
        detections: the boxes, in pixels of the network's input.
        logits: logits [n, g, g] on the windows of the boxes.
        margin: see `box_windows_of`.
        clip: whether masks end at the box.
    """
    size = photographs.records[index].size
    quality = estimate_iou(logits.sigmoid())
    masks = MaskWindows(size, len(logits))
    class_map = ClassMap(size, OPTIONS, logits.device)
    boxes = restore_boxes(detections.boxes, photographs.input_size, size)
    for number, window in enumerate(box_windows_of(boxes, margin)):
        read = boxes[number : number + 1] if clip else window[None]
        x0, y0, x1, y1 = pixel_windows(read, size)[0].tolist()
        pixels = (x0, y0, max(x0, x1), max(y0, y1))
        scores = BoxScores(pixels, read_grid(logits[number], window, pixels).sigmoid(), quality[number])
        masks.put(number, pixels, (scores.inside > OPTIONS.foreground_threshold).numpy())
        class_map.add(number, scores, int(detections.labels[number]), float(detections.scores[number]))
    scored = replace(detections, scores=detections.scores * quality)
    return Prediction(scored, masks.dense(), class_map.semantic)


def draws(images: tuple[int, ...], seed: int) -> Iterator[Draw]:
    """Yield the images of each step: shuffled rounds, half of the images mirrored."""
    generator = np.random.default_rng(seed)
    queue: list[int] = []
    while True:
        while len(queue) < BATCH_SIZE:
            queue += generator.permutation(images).tolist()
        indices, queue = queue[:BATCH_SIZE], queue[BATCH_SIZE:]
        mirrored = generator.integers(2, size=BATCH_SIZE).astype(bool).tolist()
        yield Draw(tuple(indices), tuple(mirrored), tuple(generator.integers(2**31, size=BATCH_SIZE).tolist()))


def learning_rate(done: float) -> float:
    """Return the rate after a share of the training: a linear rise, then a cosine."""
    if done < WARMUP:
        return RATE * (START_SHARE + (1 - START_SHARE) * done / WARMUP)
    cosine = (1 + math.cos(math.pi * min(1.0, (done - WARMUP) / (1 - WARMUP)))) / 2
    return RATE * (END_SHARE + (1 - END_SHARE) * cosine)


def train(learner: Learner, masked: MaskedObjects, seconds: float, seed: int, max_steps: int = 0) -> tuple[float, int]:
    """Train for a time of the processor; the schedule follows the share of the time that is spent.

    Args:
        learner: the method.
        masked: the objects whose masks may be used.
        seconds: seconds of the processor.
        seed: seed of the draws.
        max_steps: stop after this many steps and follow their share; 0 follows the time.

    Returns:
        The seconds that were spent, and the steps.
    """
    photographs = learner.study.train
    targets = limited_targets(photographs, masked)
    learner.prepare(masked)
    learner.train()
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    weights = {"params": [item for item in parameters if item.ndim > 1], "weight_decay": DECAY}
    others = {"params": [item for item in parameters if item.ndim <= 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([weights, others], lr=RATE)
    steps, started = 0, time.process_time()
    for draw in draws(masked.images, seed):
        done = steps / max_steps if max_steps else (time.process_time() - started) / seconds
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done)
        loss = learner.loss(make_batch(photographs, targets, draw), draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    learner.eval()
    return time.process_time() - started, steps
