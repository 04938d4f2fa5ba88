"""Semantic inference (paper section 4) and the semantic loss, both decoded only in windows around the boxes.

Inference decodes each detected class once and merges the classes of an image into one class map. The loss needs only
windows because all labels outside of the boxes are 255. Its value and gradients equal those of `semantic_loss` on whole
maps: only the coarse part of a decoder has BatchNorm, and it is decoded as whole maps, for all regions together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.attention import box_scores
from dasnet_lightning.functional.boxes import scale_boxes
from dasnet_lightning.functional.losses import LossSum
from dasnet_lightning.functional.patches import Patches, paste, resize
from dasnet_lightning.functional.regions import confident_detections, regions_by_class
from dasnet_lightning.functional.windows import Windows, box_windows, join_windows, resize_input_window
from dasnet_lightning.models.box_decoding import decode_boxes, decodes_boxes
from dasnet_lightning.models.box_scores import NO_REFINEMENT, Refinement, filter_map, mirror_detections
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.local_decoding import DecodedWindows, decode_windows
from dasnet_lightning.models.window_prediction import WindowPrediction, cut_class_map
from dasnet_lightning.nn.decoder.layers import convolve_patches
from dasnet_lightning.nn.heads import Head, SemanticHead
from dasnet_lightning.types import IGNORE_INDEX, Detections, Prediction, Pyramid, Regions


@dataclass(frozen=True)
class SemanticOptions:
    """Options of semantic inference; the paper's values are 0.5, 5, 0.2, 5 px and no weighting.

    Attributes:
        score_threshold: lowest score of the detections that are decoded.
        max_classes: number of best-scored classes of an image that are decoded.
        foreground_threshold: lowest foreground probability of a pixel of a class.
        box_margin: input pixels by which boxes are widened; a class counts only inside its widened boxes.
        weight_by_score: if several classes claim a pixel, weight their probabilities by the detector's scores. The
            decoder does not know classes and cannot tell which of two boxes around one object is right.
        regions_at_once: limit on the whole decodes that are held in memory together.
        flip: also decode the image mirrored left to right, and average. It costs a second pass of the network.
        guided_filter: align the classes with the edges of the image (functional.guided_filter).
    """

    score_threshold: float = 0.3
    max_classes: int = 5
    foreground_threshold: float = 0.5
    box_margin: float = 0.0
    weight_by_score: bool = True
    regions_at_once: int = 16
    flip: bool = False
    guided_filter: bool = False

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
    refinement: Refinement = NO_REFINEMENT,
) -> tuple[Prediction, ...]:
    """Predict the class map of each image.

    The mask of a detection is the part of the class map inside its box that has its class. Touching objects of one class
    are not separated.

    Args:
        model: the network.
        pyramid: features of the images.
        detections: the detections of each image, boxes in input pixels.
        sizes: (height, width) of each image's class map.
        options: options of inference.
        given: the boxes are given, by annotations for example: segment all of them, whatever the thresholds and limits.
        refinement: what `flip` and `guided_filter` read.
    """
    predictions = segment_semantic_windows(model, pyramid, detections, sizes, options, given, refinement)
    return tuple(item.dense() for item in predictions)


def segment_semantic_windows(
    model: DASNet,
    pyramid: Pyramid,
    detections: Sequence[Detections],
    sizes: Sequence[tuple[int, int]],
    options: SemanticOptions,
    given: bool = False,
    refinement: Refinement = NO_REFINEMENT,
) -> tuple[WindowPrediction, ...]:
    """Do the work of `segment_semantic`, whose arguments it takes, at a memory of a bit for each pixel of a box."""
    selected = list(detections)
    if not given:
        selected = [confident_detections(item, options.score_threshold, options.max_classes) for item in detections]
    regions = regions_by_class(selected)
    foreground = _foreground(model, pyramid, regions, sizes, options)
    if refinement.mirrored is not None:
        mirrored = regions_by_class([mirror_detections(item, pyramid.size[1]) for item in selected])
        flipped = _foreground(model, refinement.mirrored, mirrored, sizes, options)
        foreground = [(maps + other.flip(2)) / 2 for maps, other in zip(foreground, flipped, strict=True)]
    predictions, start = [], 0
    for image, (image_detections, maps, size) in enumerate(zip(selected, foreground, sizes, strict=True)):
        stop = start + len(maps)
        maps = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        if refinement.guides is not None:
            sides = _box_sides(regions.select(start, stop), pyramid.size, size)
            for region_map, side in zip(maps, sides, strict=True):
                region_map.copy_(filter_map(region_map, refinement.guides[image], side))
        of_image = regions.select(start, stop)
        semantic = _class_map(maps, of_image, image_detections.scores, pyramid.size, size, options)
        predictions.append(cut_class_map(semantic, maps, of_image.labels, image_detections, pyramid.size))
        start = stop
    return tuple(predictions)


def _box_sides(regions: Regions, input_size: tuple[int, int], size: tuple[int, int]) -> list[float]:
    """Return the mean side of the boxes of each region of an image of this size, in its pixels."""
    boxes = scale_boxes(regions.boxes, input_size, size)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1).sqrt()
    return [float(sides[regions.region_index == region].mean()) for region in range(len(regions))]


def _foreground(
    model: DASNet, pyramid: Pyramid, regions: Regions, sizes: Sequence[tuple[int, int]], options: SemanticOptions
) -> list[Float[Tensor, "r h w"]]:
    """Return the foreground probabilities of the regions of each image, in pixels of the input or of the image."""
    at_once = options.regions_at_once
    counts = [int((regions.image_index == image).sum()) for image in range(len(sizes))]
    if not decodes_boxes(model):
        windows = _read_windows(regions, pyramid.size, sizes, options.box_margin)
        return list(decode_foreground(model, pyramid, regions, windows, at_once).split(counts))
    maps = [torch.zeros(n, *size, device=regions.boxes.device) for n, size in zip(counts, sizes, strict=True)]
    of_region = [item for of_image in maps for item in of_image]
    region_of_box = regions.region_index.tolist()
    for number, scores in decode_boxes(model, pyramid, regions, sizes, at_once, clip=False):
        window = of_region[region_of_box[number]][scores.slices]
        window.copy_(torch.maximum(window, scores.inside))
    return maps


def _read_windows(
    regions: Regions, input_size: tuple[int, int], sizes: Sequence[tuple[int, int]], margin: float
) -> Windows:
    """Return the input pixels that determine the class map inside each box."""
    image_of_box = regions.image_index[regions.region_index]
    windows = []
    for image, size in enumerate(sizes):
        boxes = scale_boxes(_widen(regions.boxes[image_of_box == image], margin), input_size, size)
        windows.append(resize_input_window(box_windows(boxes, size).grow(1), input_size))  # 1 allows for rounding
    return join_windows(windows, input_size)


def decode_foreground(
    model: DASNet, pyramid: Pyramid, regions: Regions, windows: Windows, regions_at_once: int
) -> Float[Tensor, "r H W"]:
    """Return the foreground probability of each region in input pixels, valid inside the windows of its boxes."""
    foreground = torch.zeros(len(regions), 1, *pyramid.size, device=regions.boxes.device)
    for decoded in decode_windows(model, pyramid, regions, [windows], regions_at_once):
        logits = resize(score_patches(model.head, decoded.patches), pyramid.size)
        probs = logits.map(lambda values: values.float().softmax(dim=1)[:, 1:2])
        paste(probs, foreground, _region_of_patch(decoded, regions))
    return foreground[:, 0]


def score_patches(head: Head, features: Patches) -> Patches:
    """Apply the head to patches; a head other than SemanticHead only gets whole maps."""
    if features.whole:
        return features.map(head.forward)
    assert isinstance(head, SemanticHead)
    return convolve_patches(head.score, features)


def _region_of_patch(decoded: DecodedWindows, regions: Regions) -> Int64[Tensor, " m"]:
    region_index = torch.zeros(len(decoded.patches.values), dtype=torch.int64)
    return region_index.scatter(0, decoded.patch_index, regions.region_index.cpu()[decoded.window_index])


def _class_map(
    foreground: Float[Tensor, "r H0 W0"],
    regions: Regions,
    scores: Float[Tensor, " n"],
    input_size: tuple[int, int],
    size: tuple[int, int],
    options: SemanticOptions,
) -> Int64[Tensor, "H0 W0"]:
    if not len(regions):
        return torch.zeros(size, dtype=torch.int64, device=foreground.device)
    scores = scores if options.weight_by_score else torch.ones_like(scores)
    boxes = _widen(regions.boxes, options.box_margin)
    weights = box_scores(boxes, scores, regions.region_index, len(regions), input_size, size)
    return merge_regions(foreground, weights, regions.labels, options.foreground_threshold)


def _widen(boxes: Float[Tensor, "n 4"], margin: float) -> Float[Tensor, "n 4"]:
    return boxes + boxes.new_tensor([-1, -1, 1, 1]) * margin


def merge_regions(
    foreground: Float[Tensor, "r H W"],
    weights: Float[Tensor, "r H W"],
    labels: Int64[Tensor, " r"],
    foreground_threshold: float,
) -> Int64[Tensor, "H W"]:
    """Merge the regions of an image into one class map: each pixel has the label of its best region, or 0.

    Args:
        foreground: foreground probabilities of each region.
        weights: factors of the probabilities; 0 excludes a region from a pixel.
        labels: class of each region.
        foreground_threshold: lowest probability, before weighting, that counts.
    """
    if not len(labels):
        return torch.zeros(foreground.shape[1:], dtype=torch.int64, device=foreground.device)
    weighted = (foreground * weights).masked_fill(foreground < foreground_threshold, 0)
    best, winner = weighted.max(dim=0)
    return torch.where(best > 0, labels[winner], torch.zeros_like(winner))


def window_loss(model: DASNet, pyramid: Pyramid, regions: Regions, labels: Int64[Tensor, "r H W"]) -> LossSum:
    """Compute `semantic_loss` by decoding only windows around the boxes.

    Args:
        model: the network.
        pyramid: features of the images.
        regions: the regions of the training step.
        labels: label of each input pixel of each region; must be 255 outside of the region's boxes.
    """
    uncounted, total = labels.clone(), torch.zeros((), device=labels.device)
    windows = box_windows(regions.boxes, pyramid.size)
    for decoded in decode_windows(model, pyramid, regions, [windows], len(regions)):
        logits = resize(score_patches(model.head, decoded.patches), pyramid.size)
        patch_labels = _take_labels(uncounted, logits, _region_of_patch(decoded, regions))
        total = total + F.cross_entropy(logits.values.float(), patch_labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return LossSum(total, (labels != IGNORE_INDEX).sum())


def _take_labels(
    uncounted: Int64[Tensor, "r H W"], logits: Patches, regions: Int64[Tensor, " m"]
) -> Int64[Tensor, "m h w"]:
    """Return the labels of each patch and set them to 255 in `uncounted`, so that overlapping patches count a pixel once."""
    patch_labels = torch.full_like(logits.values[:, 0], IGNORE_INDEX, dtype=torch.int64)
    inside = logits.windows.clip()
    for labels, region, (y, x), (y0, x0), (y1, x1) in zip(
        patch_labels,
        regions.tolist(),
        logits.windows.start.tolist(),
        inside.start.tolist(),
        inside.stop.tolist(),
        strict=True,
    ):
        window = uncounted[region, y0:y1, x0:x1]
        labels[y0 - y : y1 - y, x0 - x : x1 - x] = window
        window.fill_(IGNORE_INDEX)
    return patch_labels
