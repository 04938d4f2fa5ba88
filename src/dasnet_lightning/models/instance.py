"""Instance inference (paper section 5): one decode per detected box, one mask inside it; and a class map made of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.boxes import pixel_windows, restore_boxes
from dasnet_lightning.functional.lazy_scoring import score_boxes
from dasnet_lightning.functional.patches import Patches
from dasnet_lightning.functional.position_sensitive import inside_logits, instance_scores, pixel_grid
from dasnet_lightning.functional.regions import best_detections, regions_by_class, regions_by_instance
from dasnet_lightning.functional.windows import box_windows, join_windows, size_buckets
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.local_decoding import decode_windows
from dasnet_lightning.nn.heads import PositionSensitiveHead
from dasnet_lightning.types import Detections, Prediction, Pyramid, Regions

ALIKE = 2.0  # boxes of an image are read together where none is padded to more than so many times its own pixels
PIXELS_AT_ONCE = 2**20


@dataclass(frozen=True)
class InstanceOptions:
    """The choices of instance inference.

    score_threshold: detections from which on the class map is made, and what `Segmenter` shows. lowest_score: detections
    from which on masks are made at all; average precision wants the unsure ones as well. max_detections: the best of an
    image. foreground_threshold: a pixel's probability of being inside must exceed it (0.5: inside > outside; FCIS: 0.4).
    weight_by_instance_score: multiply the detector's score by the instance score, which ranks boxes that fit badly lower.
    grouping: "instance" gives each box alone to the attention (the paper), "class" all boxes of a class at once, as in
    training, with fewer decodes. regions_at_once: the memory of so many whole decodes is taken at most.
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
    given: bool = False,
) -> tuple[Prediction, ...]:
    """One mask for each detection at `sizes` (height, width), from boxes in input pixels.

    With `given` boxes, annotated ones for example, neither a score threshold nor `max_detections` applies.
    """
    kept = list(detections)
    if given:
        options = replace(options, score_threshold=0.0)
    else:
        kept = [best_detections(item, options.lowest_score, options.max_detections) for item in detections]
    by_instance = options.grouping == "instance"
    # a box decoded by itself shows no class: found as several classes it is decoded once
    drawn = [_distinct_boxes(item) if by_instance else (item, list(range(len(item.labels)))) for item in kept]
    group = regions_by_instance if by_instance else regions_by_class
    regions = group([item for item, _ in drawn])
    cutouts = dict(_cut_all(model, pyramid, regions, sizes, options.regions_at_once))
    answers, first = [], 0
    for found, (some, places), size in zip(kept, drawn, sizes, strict=True):
        answers.append(_answer(found, [cutouts[first + place] for place in places], size, options))
        first += len(some.labels)
    return tuple(answers)


def _distinct_boxes(found: Detections) -> tuple[Detections, list[int]]:
    """The detections without those whose box another one has too, and the place among them of each given one's box."""
    number_of: dict[tuple[float, ...], int] = {}
    places = [number_of.setdefault(tuple(box), len(number_of)) for box in found.boxes.tolist()]
    firsts = [places.index(number) for number in range(len(number_of))]
    return Detections(found.boxes[firsts], found.labels[firsts], found.scores[firsts]), places


def _cut_all(
    model: DASNet, pyramid: Pyramid, regions: Regions, sizes: Sequence[tuple[int, int]], at_once: int
) -> Iterator[tuple[int, Cutout]]:
    """Each box's number and what was read of it, in any order."""
    assert isinstance(model.head, PositionSensitiveHead)
    images = regions.image_index[regions.region_index].cpu()
    members = [(images == image).nonzero()[:, 0] for image in range(len(sizes))]
    boxes = [restore_boxes(regions.boxes[n], pyramid.size, size) for n, size in zip(members, sizes, strict=True)]
    windows = [box_windows(some, size) for some, size in zip(boxes, sizes, strict=True)]
    every_box, every_window = torch.cat([regions.boxes[:0], *boxes]), join_windows(windows, pyramid.size)
    kinds = list(dict.fromkeys(sizes))  # images of one size are read together
    kind_of = torch.tensor([kinds.index(size) for size in sizes], dtype=torch.int64)[images]
    for piece in decode_windows(model, pyramid, regions, windows, at_once):
        for kind in kind_of[piece.numbers].unique().tolist():
            here = (kind_of[piece.numbers] == kind).nonzero()[:, 0]
            numbers = piece.numbers[here]
            # boxes that are read together are padded to the largest
            for alike, _ in size_buckets(every_window.take(numbers), ALIKE, PIXELS_AT_ONCE):
                some = every_box[numbers[alike]]
                cutouts = cut_out(model.head, piece.patches, piece.rows[here[alike]], some, kinds[kind])
                yield from zip(numbers[alike].tolist(), cutouts, strict=True)


def cut_out(
    head: PositionSensitiveHead,
    features: Patches,
    rows: Int64[Tensor, " n"],
    boxes: Float[Tensor, "n 4"],
    size: tuple[int, int],
) -> list[Cutout]:
    """Read boxes, in pixels of an image of `size`, from the decoder's features; box i from patch `rows[i]`."""
    grid, score = pixel_grid(boxes, size), head.score
    assert score.bias is not None
    scores = score_boxes(features, rows.to(boxes.device), boxes, grid, size, score.weight, score.bias, head.cells)
    inside, fits = inside_logits(scores).sigmoid(), instance_scores(scores, grid.valid).sigmoid()
    cutouts = []
    for number, (x0, y0, x1, y1) in enumerate(pixel_windows(boxes, size).tolist()):
        window = inside[number, : max(0, y1 - y0), : max(0, x1 - x0)]
        cutouts.append(Cutout((x0, y0, x1, y1), window, fits[number]))
    return cutouts


def _answer(
    found: Detections, cutouts: Sequence[Cutout], size: tuple[int, int], options: InstanceOptions
) -> Prediction:
    semantic = class_map(cutouts, found, size, options)
    scores = found.scores
    if options.weight_by_instance_score and len(cutouts):
        scores = scores * torch.stack([cutout.score for cutout in cutouts]).to(scores.dtype)
    return Prediction(Detections(found.boxes, found.labels, scores), _paint(cutouts, found, size, options), semantic)


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
