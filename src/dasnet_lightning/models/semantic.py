"""Semantic inference (paper section 4): one decode per detected class, merged into one class map per image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.attention import box_attention, box_scores
from dasnet_lightning.functional.boxes import restore_boxes
from dasnet_lightning.functional.regions import confident_detections, regions_by_class
from dasnet_lightning.functional.semantic import merge_regions
from dasnet_lightning.models.answer import Answer
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.types import Detections, Pyramid, Regions


@dataclass(frozen=True)
class SemanticOptions:
    """The choices of semantic inference; the paper's values are 0.5, 5, 0.2, 5 px and no weighting.

    score_threshold: detections below it are not decoded. max_classes: of the best-scored detections, in an image.
    foreground_threshold: a pixel's probability must reach it. box_margin: a class counts only inside its boxes, widened
    by so many input pixels. weight_by_score: where two classes claim a pixel, the detector's scores weigh in; the decoder
    knows no classes and cannot tell which of two boxes around one object is right. regions_at_once: how many are decoded
    together, which bounds the memory.
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
) -> tuple[Answer, ...]:
    """The class map of each image at `sizes` (height, width), from boxes in input pixels.

    An object's mask is what the class map shows of its class inside its box: touching objects of a class are not told
    apart.
    """
    kept = [confident_detections(item, options.score_threshold, options.max_classes) for item in detections]
    regions = regions_by_class(kept)
    foreground = decode_foreground(model, pyramid, regions, options.regions_at_once)
    answers, start = [], 0
    for image, (found, size) in enumerate(zip(kept, sizes, strict=True)):
        stop = start + int((regions.image_index == image).sum())
        part = regions.select(start, stop)
        semantic = _class_map(foreground[start:stop], part, found.scores, pyramid.size, size, options)
        answers.append(Answer(found, _cut_out(semantic, found, pyramid.size), semantic))
        start = stop
    return tuple(answers)


def _cut_out(
    semantic: Int64[Tensor, "H0 W0"], found: Detections, input_size: tuple[int, int]
) -> Bool[Tensor, "n H0 W0"]:
    size = (semantic.shape[0], semantic.shape[1])
    each = torch.arange(len(found.labels), device=semantic.device)
    windows = box_attention(restore_boxes(found.boxes, input_size, size), each, len(each), size, size) > 0
    return windows & (semantic == found.labels[:, None, None])


def decode_foreground(
    model: DASNet, pyramid: Pyramid, regions: Regions, regions_at_once: int
) -> Float[Tensor, "r H W"]:
    """The foreground probability of each region in input pixels, decoded a few regions at a time."""
    height, width = pyramid.size
    parts = [torch.zeros(0, height, width, device=regions.boxes.device)]
    for start in range(0, len(regions), regions_at_once):
        logits = model.decode(pyramid, regions.select(start, start + regions_at_once))
        parts.append(logits.float().softmax(dim=1)[:, 1])
    return torch.cat(parts)


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
    margin = torch.tensor([-1, -1, 1, 1], device=foreground.device) * options.box_margin
    widened = regions.boxes + margin
    weights = box_scores(widened, scores, regions.region_index, len(regions), input_size, size)
    resized = F.interpolate(foreground[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return merge_regions(resized, weights, regions.labels, options.foreground_threshold)
