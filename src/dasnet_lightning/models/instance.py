"""Instance inference (paper section 5): one decode per detected box, one mask inside it; and a class map made of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.boxes import restore_boxes
from dasnet_lightning.functional.position_sensitive import (
    inside_logits,
    instance_scores,
    pixel_grid,
    pixel_windows,
    read_boxes,
)
from dasnet_lightning.functional.regions import best_detections, regions_by_class, regions_by_instance
from dasnet_lightning.models.answer import Answer
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.nn.heads import PositionSensitiveHead
from dasnet_lightning.types import Detections, Pyramid, Regions


@dataclass(frozen=True)
class InstanceOptions:
    """The choices of instance inference.

    score_threshold: detections from which on the class map is made, and what `Segmenter` shows. lowest_score: detections
    from which on masks are made at all; average precision wants the unsure ones as well. max_detections: the best of an
    image. foreground_threshold: a pixel's probability of being inside must exceed it (0.5: inside > outside; FCIS: 0.4).
    weight_by_instance_score: multiply the detector's score by the instance score, which ranks boxes that fit badly lower.
    grouping: "instance" gives each box alone to the attention (the paper), "class" all boxes of a class at once, as in
    training, with fewer decodes. regions_at_once: how many are decoded together, which bounds the memory.
    """

    score_threshold: float = 0.3
    lowest_score: float = 0.05
    max_detections: int = 100
    foreground_threshold: float = 0.5
    weight_by_instance_score: bool = True
    grouping: Literal["instance", "class"] = "instance"
    regions_at_once: int = 16

    def __post_init__(self) -> None:
        if self.regions_at_once < 1 or self.max_detections < 0:
            raise ConfigError(
                f"regions_at_once={self.regions_at_once} must be at least 1, max_detections={self.max_detections} at least 0"
            )


@dataclass(frozen=True, eq=False)
class Cutout:
    """What was read of one box: its window x0, y0, x1, y1, the probability of being inside, and the instance score."""

    window: tuple[int, int, int, int]
    inside: Float[Tensor, "hb wb"]
    score: Float[Tensor, ""]

    @property
    def place(self) -> tuple[slice, slice]:
        x0, y0, x1, y1 = self.window
        return slice(y0, y1), slice(x0, x1)


def segment_instances(
    model: DASNet,
    pyramid: Pyramid,
    detections: Sequence[Detections],
    sizes: Sequence[tuple[int, int]],
    options: InstanceOptions,
) -> tuple[Answer, ...]:
    """One mask for each detection at `sizes` (height, width), from boxes in input pixels."""
    kept = [best_detections(item, options.lowest_score, options.max_detections) for item in detections]
    regions = regions_by_instance(kept) if options.grouping == "instance" else regions_by_class(kept)
    cutouts = dict(_cut_all(model, pyramid, regions, sizes, options.regions_at_once))
    answers, first = [], 0
    for found, size in zip(kept, sizes, strict=True):
        stop = first + len(found.labels)
        answers.append(_answer(found, [cutouts[index] for index in range(first, stop)], size, options))
        first = stop
    return tuple(answers)


def _cut_all(
    model: DASNet, pyramid: Pyramid, regions: Regions, sizes: Sequence[tuple[int, int]], at_once: int
) -> Iterator[tuple[int, Cutout]]:
    """Each box's number and what was read of it, decoding a few regions at a time."""
    assert isinstance(model.head, PositionSensitiveHead)
    images = regions.image_index.tolist()
    for start in range(0, len(regions), at_once):
        maps = model.score(pyramid, regions.select(start, start + at_once))
        inside = (regions.region_index >= start) & (regions.region_index < start + at_once)
        for index in inside.nonzero()[:, 0].tolist():
            region = int(regions.region_index[index])
            size = sizes[images[region]]
            box = restore_boxes(regions.boxes[index, None], pyramid.size, size)
            yield index, cut_out(maps[region - start], box, size, model.head.cells)


def cut_out(maps: Float[Tensor, "c h w"], box: Float[Tensor, "1 4"], size: tuple[int, int], cells: int) -> Cutout:
    """Read one box, in pixels of an image of `size`, from the score maps of its region."""
    grid = pixel_grid(box, size)
    scores = read_boxes(maps[None], box, torch.zeros(1, dtype=torch.int64, device=box.device), grid, size, cells)
    x0, y0, x1, y1 = pixel_windows(box, size)[0].tolist()
    inside = inside_logits(scores).sigmoid()[0, : max(0, y1 - y0), : max(0, x1 - x0)]
    return Cutout((x0, y0, x1, y1), inside, instance_scores(scores, grid.valid).sigmoid()[0])


def _answer(found: Detections, cutouts: Sequence[Cutout], size: tuple[int, int], options: InstanceOptions) -> Answer:
    semantic = class_map(cutouts, found, size, options)
    scores = found.scores
    if options.weight_by_instance_score and len(cutouts):
        scores = scores * torch.stack([cutout.score for cutout in cutouts]).to(scores.dtype)
    return Answer(Detections(found.boxes, found.labels, scores), _paint(cutouts, found, size, options), semantic)


def _paint(
    cutouts: Sequence[Cutout], found: Detections, size: tuple[int, int], options: InstanceOptions
) -> Bool[Tensor, "n H0 W0"]:
    masks = torch.zeros(len(cutouts), *size, dtype=torch.bool, device=found.boxes.device)
    for mask, cutout in zip(masks, cutouts, strict=True):
        mask[cutout.place] = cutout.inside > options.foreground_threshold
    return masks


def class_map(
    cutouts: Sequence[Cutout], found: Detections, size: tuple[int, int], options: InstanceOptions
) -> Int64[Tensor, "H0 W0"]:
    """The class map that the instances of an image make: a pixel belongs to the class of its best instance.

    Instances with a detector's score of at least `score_threshold` compete with their probability times that score; a
    probability that does not exceed `foreground_threshold` does not count.
    """
    best = torch.zeros(size, device=found.boxes.device)
    semantic = torch.zeros(size, dtype=torch.int64, device=found.boxes.device)
    for cutout, label, score in zip(cutouts, found.labels, found.scores.float(), strict=True):
        if score < options.score_threshold:
            continue
        place = cutout.place
        strength = (cutout.inside * score).masked_fill(cutout.inside <= options.foreground_threshold, 0)
        wins = strength > best[place]
        best[place] = torch.where(wins, strength, best[place])
        semantic[place] = torch.where(wins, label, semantic[place])
    return semantic
