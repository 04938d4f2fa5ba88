"""Semantic inference (paper section 4): one decode per detected class, merged into one class map per image.

The semantic loss from windows: the labels are 255 outside of the boxes, so nothing else has to be decoded in training.

The loss and its gradients are those of `semantic_loss` on whole maps: BatchNorm stands in the coarse part of a decoder,
which is decoded whole and for all regions together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.attention import box_attention, box_scores
from dasnet_lightning.functional.boxes import restore_boxes, scale_boxes
from dasnet_lightning.functional.losses import LossSum
from dasnet_lightning.functional.patches import Patches, paste, resize
from dasnet_lightning.functional.regions import confident_detections, regions_by_class
from dasnet_lightning.functional.windows import Windows, box_windows, join_windows, resize_input_window
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.local_decoding import decode_windows
from dasnet_lightning.nn.decoder.layers import convolve_patches
from dasnet_lightning.nn.heads import Head, SemanticHead
from dasnet_lightning.types import IGNORE_INDEX, Detections, Prediction, Pyramid, Regions


@dataclass(frozen=True)
class SemanticOptions:
    """The choices of semantic inference; the paper's values are 0.5, 5, 0.2, 5 px and no weighting.

    score_threshold: detections below it are not decoded. max_classes: of the best-scored detections, in an image.
    foreground_threshold: a pixel's probability must reach it. box_margin: a class counts only inside its boxes, widened
    by so many input pixels. weight_by_score: where two classes claim a pixel, the detector's scores weigh in; the decoder
    knows no classes and cannot tell which of two boxes around one object is right. regions_at_once: the memory of so
    many whole decodes is taken at most.
    """

    score_threshold: float = 0.3
    max_classes: int = 5
    foreground_threshold: float = 0.5
    box_margin: float = 0.0
    weight_by_score: bool = True
    regions_at_once: int = 16

    def __post_init__(self) -> None:
        if self.regions_at_once < 1 or self.max_classes < 0:
            raise ConfigError(
                f"regions_at_once={self.regions_at_once} must be at least 1, max_classes={self.max_classes} at least 0"
            )


def segment_semantic(
    model: DASNet,
    pyramid: Pyramid,
    detections: Sequence[Detections],
    sizes: Sequence[tuple[int, int]],
    options: SemanticOptions,
    given: bool = False,
) -> tuple[Prediction, ...]:
    """The class map of each image at `sizes` (height, width), from boxes in input pixels.

    An object's mask is what the class map shows of its class inside its box: touching objects of a class are not told
    apart. With `given` boxes, annotated ones for example, neither the score threshold nor `max_classes` applies.
    """
    kept = list(detections)
    if not given:
        kept = [confident_detections(item, options.score_threshold, options.max_classes) for item in detections]
    regions = regions_by_class(kept)
    windows = _read_windows(regions, pyramid.size, sizes, options.box_margin)
    foreground = decode_foreground(model, pyramid, regions, windows, options.regions_at_once)
    answers, start = [], 0
    for image, (found, size) in enumerate(zip(kept, sizes, strict=True)):
        stop = start + int((regions.image_index == image).sum())
        part = regions.select(start, stop)
        semantic = _class_map(foreground[start:stop], part, found.scores, pyramid.size, size, options)
        answers.append(Prediction(found, _cut_out(semantic, found, pyramid.size), semantic))
        start = stop
    return tuple(answers)


def _cut_out(
    semantic: Int64[Tensor, "H0 W0"], found: Detections, input_size: tuple[int, int]
) -> Bool[Tensor, "n H0 W0"]:
    size = (semantic.shape[0], semantic.shape[1])
    each = torch.arange(len(found.labels), device=semantic.device)
    windows = box_attention(restore_boxes(found.boxes, input_size, size), each, len(each), size, size) > 0
    return windows & (semantic == found.labels[:, None, None])


def _read_windows(
    regions: Regions, input_size: tuple[int, int], sizes: Sequence[tuple[int, int]], margin: float
) -> Windows:
    """The input pixels that decide about the class map inside of each box."""
    images = regions.image_index[regions.region_index]
    parts = []
    for image, size in enumerate(sizes):
        boxes = scale_boxes(_widen(regions.boxes[images == image], margin), input_size, size)
        parts.append(resize_input_window(box_windows(boxes, size).grow(1), input_size))  # 1: for roundings
    return join_windows(parts, input_size)


def decode_foreground(
    model: DASNet, pyramid: Pyramid, regions: Regions, windows: Windows, regions_at_once: int
) -> Float[Tensor, "r H W"]:
    """The foreground probability of each region in input pixels, inside the windows of its boxes at least."""
    foreground = torch.zeros(len(regions), 1, *pyramid.size, device=regions.boxes.device)
    owners = regions.region_index.cpu()
    for piece in decode_windows(model, pyramid, regions, [windows], regions_at_once):
        logits = resize(score_patches(model.head, piece.patches), pyramid.size)
        probs = logits.map(lambda values: values.float().softmax(dim=1)[:, 1:2])
        targets = torch.zeros(len(probs.values), dtype=torch.int64).scatter(0, piece.rows, owners[piece.numbers])
        paste(probs, foreground, targets)
    return foreground[:, 0]


def score_patches(head: Head, features: Patches) -> Patches:
    """The scores of a head on patches; one of another kind than ours only meets whole maps."""
    if features.whole:
        return features.map(head.forward)
    assert isinstance(head, SemanticHead)
    return convolve_patches(head.score, features)


def _widen(boxes: Float[Tensor, "n 4"], margin: float) -> Float[Tensor, "n 4"]:
    return boxes + boxes.new_tensor([-1, -1, 1, 1]) * margin


def _class_map(
    foreground: Float[Tensor, "r H W"],
    regions: Regions,
    scores: Float[Tensor, " n"],
    input_size: tuple[int, int],
    size: tuple[int, int],
    options: SemanticOptions,
) -> Int64[Tensor, "H0 W0"]:
    if not len(regions):
        return torch.zeros(size, dtype=torch.int64, device=foreground.device)
    scores = scores if options.weight_by_score else torch.ones_like(scores)
    widened = _widen(regions.boxes, options.box_margin)
    weights = box_scores(widened, scores, regions.region_index, len(regions), input_size, size)
    resized = F.interpolate(foreground[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return merge_regions(resized, weights, regions.labels, options.foreground_threshold)


def merge_regions(
    foreground: Float[Tensor, "r H W"],
    weights: Float[Tensor, "r H W"],
    labels: Int64[Tensor, " r"],
    foreground_threshold: float,
) -> Int64[Tensor, "H W"]:
    """One class map from the foreground probabilities of the regions of an image: the best region wins a pixel.

    A pixel's probabilities below the threshold do not count; the others compete after multiplication with `weights`,
    which are 0 where a region may not answer. What no region wins is 0.
    """
    if not len(labels):
        return torch.zeros(foreground.shape[1:], dtype=torch.int64, device=foreground.device)
    kept = (foreground * weights).masked_fill(foreground < foreground_threshold, 0)
    best, winner = kept.max(dim=0)
    return torch.where(best > 0, labels[winner], torch.zeros_like(winner))


def window_loss(model: DASNet, pyramid: Pyramid, regions: Regions, labels: Int64[Tensor, "r H W"]) -> LossSum:
    """Softmax cross-entropy over (background, foreground) of each region in input pixels, over the known labels.

    Labels outside of the boxes of their region must be 255.
    """
    left, total = labels.clone(), torch.zeros((), device=labels.device)
    windows = box_windows(regions.boxes, pyramid.size)
    for piece in decode_windows(model, pyramid, regions, [windows], len(regions)):
        logits = resize(score_patches(model.head, piece.patches), pyramid.size)
        targets = torch.zeros(len(logits.values), dtype=torch.int64)
        targets[piece.rows] = regions.region_index.cpu()[piece.numbers]
        taken = _take(left, logits, targets)
        total = total + F.cross_entropy(logits.values.float(), taken, ignore_index=IGNORE_INDEX, reduction="sum")
    return LossSum(total, (labels != IGNORE_INDEX).sum())


def _take(left: Int64[Tensor, "r H W"], logits: Patches, targets: Int64[Tensor, " m"]) -> Int64[Tensor, "m h w"]:
    """The labels of each patch, which are 255 in `left` from then on: where patches overlap, a pixel counts once."""
    taken = torch.full_like(logits.values[:, 0], IGNORE_INDEX, dtype=torch.int64)
    windows, inside = logits.windows, logits.windows.clip()
    for labels, target, (top, bottom), (first, last), (y, x) in zip(
        taken,
        targets.tolist(),
        torch.stack([inside.start[:, 0], inside.stop[:, 0]], dim=1).tolist(),
        torch.stack([inside.start[:, 1], inside.stop[:, 1]], dim=1).tolist(),
        windows.start.tolist(),
        strict=True,
    ):
        here = left[target, top:bottom, first:last]
        labels[top - y : bottom - y, first - x : last - x] = here
        here.fill_(IGNORE_INDEX)
    return taken
