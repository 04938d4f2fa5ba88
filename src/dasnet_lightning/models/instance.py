"""Instance inference (paper section 5): a mask for each detected box, and a class map made of the masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.boxes import pixel_windows, restore_boxes
from dasnet_lightning.functional.lazy_scoring import score_boxes
from dasnet_lightning.functional.mask_quality import estimate_iou
from dasnet_lightning.functional.patches import Patches
from dasnet_lightning.functional.position_sensitive import inside_logits, instance_scores, pixel_grid
from dasnet_lightning.functional.regions import best_detections, regions_by_class, regions_by_instance
from dasnet_lightning.functional.windows import box_windows, join_windows, size_buckets
from dasnet_lightning.mask_windows import MaskWindows
from dasnet_lightning.models.box_decoding import decode_boxes, decodes_boxes
from dasnet_lightning.models.box_scores import (
    NO_REFINEMENT,
    BoxScores,
    Refinement,
    average_mirrored,
    filter_scores,
    mirror_detections,
)
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.local_decoding import decode_windows
from dasnet_lightning.models.window_prediction import WindowPrediction
from dasnet_lightning.nn.heads import PositionSensitiveHead
from dasnet_lightning.types import Detections, Prediction, Pyramid, Regions

SLACK = 2.0  # boxes are read together if none is padded to more than this multiple of its own pixels
PIXELS_AT_ONCE = 2**20


@dataclass(frozen=True)
class InstanceOptions:
    """Options of instance inference.

    Attributes:
        score_threshold: lowest detector score of the instances in the class map; `Segmenter` also shows these only.
        lowest_score: lowest detector score of the instances that get a mask. Average precision also needs the uncertain
            ones.
        max_detections: number of best detections of an image that get a mask.
        foreground_threshold: a pixel belongs to the mask if its inside probability exceeds this value (0.5 means
            inside > outside; FCIS: 0.4).
        weight_by_instance_score: multiply the detector's score by the score of the mask, which ranks badly fitting boxes
            lower. It is the instance score of position-sensitive maps. For `zoom` it is the expected IoU of the mask.
        grouping: "instance" decodes each box alone, as the paper does. "class" decodes all boxes of a class together, as
            in training, with fewer decodes.
        regions_at_once: limit on the whole decodes that are held in memory together.
        clip_to_boxes: False lets the masks of `zoom` leave detected boxes within the margin of the decoder. Given boxes
            and the masks of other decoders always end at the box.
        flip: also decode the image mirrored left to right, and average. It costs a second pass of the network.
        guided_filter: align the masks with the edges of the image (functional.guided_filter).
    """

    score_threshold: float = 0.3
    lowest_score: float = 0.05
    max_detections: int = 100
    foreground_threshold: float = 0.5
    weight_by_instance_score: bool = True
    grouping: Literal["instance", "class"] = "instance"
    regions_at_once: int = 16
    clip_to_boxes: bool = False
    flip: bool = False
    guided_filter: bool = False

    def __post_init__(self) -> None:
        if self.regions_at_once < 1 or self.max_detections < 0:
            raise ConfigError(
                f"regions_at_once={self.regions_at_once} must be at least 1, max_detections={self.max_detections} at least 0"
            )


def segment_instances(
    model: DASNet,
    pyramid: Pyramid,
    detections: Sequence[Detections],
    sizes: Sequence[tuple[int, int]],
    options: InstanceOptions,
    given: bool = False,
    refinement: Refinement = NO_REFINEMENT,
) -> tuple[Prediction, ...]:
    """Predict one mask for each detection.

    Args:
        model: a network with a PositionSensitiveHead or a decoder of boxes.
        pyramid: features of the images.
        detections: the detections of each image, boxes in input pixels.
        sizes: (height, width) of each image's masks.
        options: options of inference.
        given: the boxes are given, by annotations for example: segment all of them, whatever the thresholds and limits.
        refinement: what `flip` and `guided_filter` read.
    """
    predictions = segment_windows(model, pyramid, detections, sizes, options, given, refinement)
    return tuple(item.dense() for item in predictions)


def segment_windows(
    model: DASNet,
    pyramid: Pyramid,
    detections: Sequence[Detections],
    sizes: Sequence[tuple[int, int]],
    options: InstanceOptions,
    given: bool = False,
    refinement: Refinement = NO_REFINEMENT,
) -> tuple[WindowPrediction, ...]:
    """Do the work of `segment_instances`, whose arguments it takes, at a memory of a bit for each pixel of a box.

    A mirrored view needs the probabilities of all boxes at once.
    """
    selected = list(detections)
    if given:
        options = replace(options, score_threshold=0.0, clip_to_boxes=True)
    else:
        selected = [best_detections(item, options.lowest_score, options.max_detections) for item in detections]
    by_instance = options.grouping == "instance" or decodes_boxes(model)
    # A decode of a single box does not depend on its class, so a box that was detected as several classes is decoded once.
    decoded = [_distinct_boxes(item) if by_instance else (item, list(range(len(item.labels)))) for item in selected]
    group = regions_by_instance if by_instance else regions_by_class
    to_decode = [item for item, _ in decoded]
    images = [_ScoredImage(item, size, options) for item, size in zip(selected, sizes, strict=True)]
    # the detections that each decoded box stands for, in the order of the decoded boxes
    owners = [
        (image, [place for place, other in enumerate(index) if other == number])
        for image, (boxes, index) in zip(images, decoded, strict=True)
        for number in range(len(boxes.labels))
    ]
    scored = _score(model, pyramid, group(to_decode), sizes, options)
    if refinement.mirrored is not None:
        mirrored = group([mirror_detections(item, pyramid.size[1]) for item in to_decode])
        flipped = dict(_score(model, refinement.mirrored, mirrored, sizes, options))
        scored = ((number, average_mirrored(scores, flipped.pop(number))) for number, scores in scored)
    if refinement.guides is not None:
        guides = [guide for guide, item in zip(refinement.guides, to_decode, strict=True) for _ in item.labels]
        scored = ((number, filter_scores(scores, guides[number])) for number, scores in scored)
    for number, scores in scored:
        image, places = owners[number]
        for place in places:
            image.add(place, scores)
    return tuple(image.predict() for image in images)


def _distinct_boxes(detections: Detections) -> tuple[Detections, list[int]]:
    """Return one detection for each distinct box, and for each given detection the index of its box among them."""
    number_of: dict[tuple[float, ...], int] = {}
    index = [number_of.setdefault(tuple(box), len(number_of)) for box in detections.boxes.tolist()]
    first = [index.index(number) for number in range(len(number_of))]
    return Detections(detections.boxes[first], detections.labels[first], detections.scores[first]), index


def _score(
    model: DASNet, pyramid: Pyramid, regions: Regions, sizes: Sequence[tuple[int, int]], options: InstanceOptions
) -> Iterator[tuple[int, BoxScores]]:
    """Yield the index and the scores of each box of the regions, in any order."""
    if decodes_boxes(model):
        return decode_boxes(model, pyramid, regions, sizes, options.regions_at_once, options.clip_to_boxes)
    return _score_all(model, pyramid, regions, sizes, options.regions_at_once)


def _score_all(
    model: DASNet, pyramid: Pyramid, regions: Regions, sizes: Sequence[tuple[int, int]], regions_at_once: int
) -> Iterator[tuple[int, BoxScores]]:
    """Yield the index and the scores of each box of the regions, in any order."""
    assert isinstance(model.head, PositionSensitiveHead)
    image_of_box = regions.image_index[regions.region_index].cpu()
    members = [(image_of_box == image).nonzero()[:, 0] for image in range(len(sizes))]
    boxes = [restore_boxes(regions.boxes[n], pyramid.size, size) for n, size in zip(members, sizes, strict=True)]
    windows = [box_windows(item, size) for item, size in zip(boxes, sizes, strict=True)]
    all_boxes, all_windows = torch.cat([regions.boxes[:0], *boxes]), join_windows(windows, pyramid.size)
    distinct_sizes = list(dict.fromkeys(sizes))  # images of one size are read together
    size_of_image = torch.tensor([distinct_sizes.index(size) for size in sizes], dtype=torch.int64)
    size_of_box = size_of_image[image_of_box]
    for decoded in decode_windows(model, pyramid, regions, windows, regions_at_once):
        for size_index in size_of_box[decoded.window_index].unique().tolist():
            of_size = (size_of_box[decoded.window_index] == size_index).nonzero()[:, 0]
            numbers = decoded.window_index[of_size]
            # The boxes of a bucket are padded to the largest one.
            for bucket, _ in size_buckets(all_windows.take(numbers), SLACK, PIXELS_AT_ONCE):
                scores = read_scores(
                    model.head,
                    decoded.patches,
                    decoded.patch_index[of_size[bucket]],
                    all_boxes[numbers[bucket]],
                    distinct_sizes[size_index],
                )
                yield from zip(numbers[bucket].tolist(), scores, strict=True)


def read_scores(
    head: PositionSensitiveHead,
    features: Patches,
    patch_index: Int64[Tensor, " n"],
    boxes: Float[Tensor, "n 4"],
    size: tuple[int, int],
) -> list[BoxScores]:
    """Score each pixel of each box.

    Args:
        head: provides the weights of the score layer.
        features: patches of the decoder's features.
        patch_index: the patch of each box.
        boxes: xyxy in pixels of an image of `size`.
        size: (height, width) of the image.
    """
    grid, layer = pixel_grid(boxes, size), head.score
    assert layer.bias is not None
    patch_index = patch_index.to(boxes.device)
    logits = score_boxes(features, patch_index, boxes, grid, size, layer.weight, layer.bias, head.cells)
    inside, scores = inside_logits(logits).sigmoid(), instance_scores(logits, grid.valid).sigmoid()
    return [
        BoxScores((x0, y0, x1, y1), inside[number, : max(0, y1 - y0), : max(0, x1 - x0)], scores[number])
        for number, (x0, y0, x1, y1) in enumerate(pixel_windows(boxes, size).tolist())
    ]


class _ScoredImage:
    """Collects the scores of the boxes of one image, which come in any order, and keeps only what they decide."""

    def __init__(self, detections: Detections, size: tuple[int, int], options: InstanceOptions) -> None:
        self.detections, self.options = detections, options
        self.masks = MaskWindows(size, len(detections.labels))
        self.instance_scores = torch.ones_like(detections.scores)
        self.quality = torch.zeros_like(detections.scores)
        self.map = ClassMap(size, options, detections.boxes.device)

    def add(self, place: int, scores: BoxScores) -> None:
        mask = scores.inside > self.options.foreground_threshold
        self.masks.put(place, scores.window, mask.cpu().numpy())
        self.instance_scores[place] = scores.score
        self.quality[place] = estimate_iou(scores.inside[None])[0]
        self.map.add(place, scores, int(self.detections.labels[place]), float(self.detections.scores[place]))

    def predict(self) -> WindowPrediction:
        scores = self.detections.scores
        if self.options.weight_by_instance_score:
            scores = scores * self.instance_scores
        detections = Detections(self.detections.boxes, self.detections.labels, scores)
        return WindowPrediction(detections, self.masks, self.map.semantic, self.quality)


class ClassMap:
    """Class map of an image: each pixel has the class of its best instance, or 0.

    Instances with a detector score of at least `score_threshold` compete with their inside probability times that score;
    of equal ones the first detection wins. A probability that does not exceed `foreground_threshold` does not count.

    Args:
        size: (height, width) of the map.
        options: options of inference.
        device: where the map lies.
    """

    def __init__(self, size: tuple[int, int], options: InstanceOptions, device: torch.device) -> None:
        self.options = options
        self.semantic = torch.zeros(size, dtype=torch.int64, device=device)
        self._best = torch.zeros(size, device=device)
        self._winner = torch.zeros(size, dtype=torch.int32, device=device)

    def add(self, place: int, scores: BoxScores, label: int, detector_score: float) -> None:
        """Add the instance of a detection; `place` is its place among the detections."""
        if detector_score < self.options.score_threshold:
            return
        window, inside = scores.slices, scores.inside
        weighted = (inside * detector_score).masked_fill(inside <= self.options.foreground_threshold, 0)
        best, winner = self._best[window], self._winner[window]
        wins = (weighted > best) | ((weighted == best) & (weighted > 0) & (winner > place))
        best[wins], winner[wins], self.semantic[window][wins] = weighted[wins], place, label
