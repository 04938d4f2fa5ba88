"""Validation pictures for W&B with its own boxes and masks, which a viewer switches on and off.

A mask picture of W&B has one class id for each pixel, at most 127. Instances of a picture that overlap or touch therefore
stand in separate mask pictures: "predictions", "predictions 2", and so on.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int8, Integer, UInt8

from dasnet_lightning.console import progress
from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.data.images import read_image
from dasnet_lightning.functional.regions import ground_truth_detections
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.inference.segmenter import Segmenter
from dasnet_lightning.training.pictures import true_masks

MAX_ID = 127  # mask_data is int8
MAX_SIDE = 1024


@dataclass(frozen=True, eq=False)
class Overlay:
    """Objects or a class map over one picture.

    Attributes:
        boxes: xyxy in pixels, n x 4.
        labels: the class of each object.
        scores: the score of each object, None for a ground truth.
        masks: the mask of each object, n x H x W, or the class map, H x W.
    """

    boxes: np.ndarray
    labels: Sequence[int]
    scores: Sequence[float] | None
    masks: np.ndarray


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """A picture with its name and its overlays by name."""

    name: str
    image: UInt8[np.ndarray, "H W 3"]
    overlays: Mapping[str, Overlay]


def validation_pictures(
    segmenter: Segmenter, val_set: SegmentationDataset, count: int, instances: bool, detects: bool = True
) -> list[Any]:
    """Segment validation images spread over the set, and return them as `wandb.Image`.

    Args:
        segmenter: the trained network.
        val_set: the validation images.
        count: how many of them.
        instances: whether masks are shown by object; else as class maps.
        detects: whether the detector finds boxes; else the ground truth's are segmented.
    """
    masked = [index for index, record in enumerate(val_set.records) if record.has_masks]
    chosen = masked[:: max(1, len(masked) // max(1, count))][:count]
    found = [_annotate(segmenter, val_set, index, instances, detects) for index in progress(chosen, "pictures")]
    return to_wandb(found, segmenter.class_names)


def _annotate(
    segmenter: Segmenter, val_set: SegmentationDataset, index: int, instances: bool, detects: bool
) -> AnnotatedImage:
    record, target = val_set.records[index], val_set[(0, index)].target
    image = read_image(record.path, image_range=val_set.image_range)
    scale = min(1.0, MAX_SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))  # as OpenCV wants it
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    objects = [item for item in record.objects if not item.ignore]
    boxes = scale * np.asarray([item.box for item in objects], dtype=np.float64).reshape(-1, 4)
    labels = [item.label for item in objects]
    given = None if detects else ground_truth_detections(target)
    prediction = segmenter.segment(small, boxes if given else None, labels if given else None)
    overlays = {"predictions": _predicted(prediction, instances, detects)}
    if target.truth is not None:
        masks = true_masks(record, target.truth) if instances else target.truth.semantic.numpy()[None]
        planes = [cv2.resize(mask.astype(np.int16), size, interpolation=cv2.INTER_NEAREST) for mask in masks]
        stack = np.stack(planes) if planes else np.zeros((0, *size[::-1]), np.int16)
        overlays["ground truth"] = Overlay(boxes, labels, None, stack.astype(bool) if instances else stack[0])
    return AnnotatedImage(record.path.name, small, overlays)


def _predicted(prediction: Segmentation, instances: bool, detects: bool) -> Overlay:
    masks = prediction.masks if instances else prediction.semantic
    scores = prediction.scores.tolist() if detects else None
    return Overlay(prediction.boxes.numpy(), prediction.labels.tolist(), scores, masks.numpy())


def to_wandb(pictures: Sequence[AnnotatedImage], class_names: Sequence[str]) -> list[Any]:
    """Return pictures as `wandb.Image` of one size: W&B shows those of several sizes wrongly."""
    import wandb

    ids = allot_ids(pictures, len(class_names))
    names = {number: class_names[label] for label, number in ids.items()}
    box_names = dict(enumerate(class_names))
    height = max((item.image.shape[0] for item in pictures), default=0)
    width = max((item.image.shape[1] for item in pictures), default=0)
    images = []
    for item in pictures:
        pad = ((0, height - item.image.shape[0]), (0, width - item.image.shape[1]))
        masks, boxes = {}, {}
        for title, overlay in item.overlays.items():
            for number, layer in enumerate(mask_layers(overlay, ids)):
                key = title if number == 0 else f"{title} {number + 1}"
                masks[key] = {"mask_data": np.pad(layer, pad), "class_labels": {0: "background"} | names}
            boxes[title] = {"box_data": box_data(overlay, class_names), "class_labels": box_names}
        images.append(
            wandb.Image(
                np.pad(item.image, (*pad, (0, 0))), caption=item.name, masks=masks, boxes=boxes, file_type="jpg"
            )
        )
    return images


def allot_ids(pictures: Iterable[AnnotatedImage], num_classes: int) -> dict[int, int]:
    """Return the id of each class in mask pictures: its label, or with more than 127 classes one for those that occur.

    Beyond 127 classes in one set of pictures, the rarest have no id and no mask.
    """
    if num_classes - 1 <= MAX_ID:
        return {label: label for label in range(1, num_classes)}
    seen: Counter[int] = Counter()
    for picture in pictures:
        for overlay in picture.overlays.values():
            labels = overlay.labels if overlay.masks.ndim == 3 else np.unique(overlay.masks).tolist()
            seen.update(label for label in labels if 0 < label < num_classes)
    return {label: number for number, (label, _) in enumerate(seen.most_common(MAX_ID), start=1)}


def mask_layers(overlay: Overlay, ids: Mapping[int, int]) -> list[Int8[np.ndarray, "H W"]]:
    """Return mask pictures, at least one. Objects that overlap or touch stand in separate ones.

    Args:
        overlay: objects or a class map.
        ids: id of each class; a class without one is left out.
    """
    if overlay.masks.ndim == 2:
        return [_map_ids(overlay.masks, ids)]
    layers = [np.zeros(overlay.masks.shape[1:], dtype=np.int8)]
    for mask, label in zip(overlay.masks, overlay.labels, strict=True):
        if label not in ids or not mask.any():
            continue
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        layer = next((layer for layer in layers if not layer[grown].any()), None)
        if layer is None:
            layer = np.zeros_like(layers[0])
            layers.append(layer)
        layer[mask.astype(bool)] = ids[label]
    return layers


def _map_ids(semantic: Integer[np.ndarray, "H W"], ids: Mapping[int, int]) -> Int8[np.ndarray, "H W"]:
    mapped = np.zeros(semantic.shape, dtype=np.int8)
    for label in np.unique(semantic).tolist():
        mapped[semantic == label] = ids.get(label, 0)
    return mapped


def box_data(overlay: Overlay, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the boxes of an overlay in pixels, as W&B takes them."""
    found = []
    for index, (box, label) in enumerate(zip(overlay.boxes.tolist(), overlay.labels, strict=True)):
        position = dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True))
        data = {"position": position, "domain": "pixel", "class_id": label, "box_caption": class_names[label]}
        if overlay.scores is not None:
            score = float(overlay.scores[index])
            data |= {"box_caption": f"{class_names[label]} {score:.2f}", "scores": {"score": score}}
        found.append(data)
    return found
