"""Methods without training: filled shapes in the boxes, and GrabCut."""

from dataclasses import replace

import cv2
import numpy as np
import torch

from dasnet_lightning.functional.boxes import pixel_windows
from dasnet_lightning.mask_windows import MaskWindows
from dasnet_lightning.metrics.floors import floor_prediction
from dasnet_lightning.models.box_scores import BoxScores
from dasnet_lightning.models.instance import ClassMap
from dasnet_lightning.types import Detections, Prediction

from .data import Study
from .learner import OPTIONS, PLAIN, Extras, Learner, select_detections

ITERATIONS = 5
SURROUNDINGS = 0.25  # of the box, on each side: sure background
LONGEST = 240  # pixels; larger windows are reduced for GrabCut


class Filled(Learner):
    """Filled shapes in the boxes."""

    def __init__(self, study: Study, shape: str) -> None:
        super().__init__(study)
        self.shape = shape

    def predict(self, index: int, detections: Detections, given: bool, extras: Extras = PLAIN) -> Prediction:
        """See `Learner.predict`."""
        val, selected = self.study.val, select_detections(detections, given)
        threshold = 0.0 if given else OPTIONS.score_threshold
        return floor_prediction(selected, self.shape, val.input_size, val.records[index].size, threshold)


class GrabCut(Learner):
    """OpenCV's GrabCut: the box is probable foreground, a quarter of its sides around it sure background."""

    def predict(self, index: int, detections: Detections, given: bool, extras: Extras = PLAIN) -> Prediction:
        """See `Learner.predict`."""
        val, selected = self.study.val, select_detections(detections, given)
        size = val.records[index].size
        masks, class_map = MaskWindows(size, len(selected.labels)), ClassMap(size, OPTIONS, torch.device("cpu"))
        boxes = pixel_windows(val.own_boxes(selected.boxes, index), size)
        for number, box in enumerate(boxes.tolist()):
            mask = grab_cut(val.pixels(index), box)
            window = (box[0], box[1], max(box[0], box[2]), max(box[1], box[3]))
            masks.put(number, window, mask)
            scores = BoxScores(window, torch.from_numpy(mask).float(), torch.ones(()))
            class_map.add(number, scores, int(selected.labels[number]), float(selected.scores[number]))
        return Prediction(replace(selected), masks.dense(), class_map.semantic)


def grab_cut(pixels: np.ndarray, box: list[int]) -> np.ndarray:
    """Return the mask of a box; the whole box if nothing around it is left or GrabCut finds nothing."""
    x0, y0, x1, y1 = box
    height, width = max(0, y1 - y0), max(0, x1 - x0)
    filled = np.ones((height, width), dtype=bool)
    left, top = max(0, x0 - round(SURROUNDINGS * width)), max(0, y0 - round(SURROUNDINGS * height))
    image = pixels[top : y1 + round(SURROUNDINGS * height), left : x1 + round(SURROUNDINGS * width)]
    labels = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    labels[y0 - top : y1 - top, x0 - left : x1 - left] = cv2.GC_PR_FGD
    scale = min(1.0, LONGEST / max(image.shape[:2]))
    small_size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(np.ascontiguousarray(image), small_size, interpolation=cv2.INTER_AREA)
    small_labels = cv2.resize(labels, small_size, interpolation=cv2.INTER_NEAREST)
    if min(height, width) < 2 or len(np.unique(small_labels)) < 2:
        return filled
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(small, small_labels, None, *models, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few distinct colors
        return filled
    found = np.isin(small_labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    large = cv2.resize(found, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR) > 0.5
    mask = large[y0 - top : y1 - top, x0 - left : x1 - left]
    return mask if mask.any() else filled
