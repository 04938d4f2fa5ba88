"""The prediction of an image in little memory, as both tasks return it."""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from dasnet_lightning.functional.boxes import pixel_windows, restore_boxes
from dasnet_lightning.functional.mask_quality import estimate_iou
from dasnet_lightning.mask_windows import MaskWindows
from dasnet_lightning.types import Detections, Prediction


@dataclass(frozen=True, eq=False)
class WindowPrediction:
    """A `Prediction` whose masks take little memory.

    Attributes:
        detections: the objects, boxes in input pixels.
        masks: the mask of each object in pixels of the image.
        semantic: the class of each pixel of the image.
        quality: the IoU that the probabilities of each mask let expect (`functional.mask_quality`), 0..1.
    """

    detections: Detections
    masks: MaskWindows
    semantic: Int64[Tensor, "H0 W0"]
    quality: Float[Tensor, " n"]

    def dense(self) -> Prediction:
        """Return the prediction with one boolean map for each mask."""
        return Prediction(self.detections, self.masks.dense().to(self.semantic.device), self.semantic)


def cut_class_map(
    semantic: Int64[Tensor, "H0 W0"],
    probs: Float[Tensor, "r H0 W0"],
    region_labels: Int64[Tensor, " r"],
    detections: Detections,
    input_size: tuple[int, int],
) -> WindowPrediction:
    """Return for each detection the pixels of its class that its box touches.

    Args:
        semantic: the class map of an image.
        probs: the probability of each class that was decoded.
        region_labels: these classes.
        detections: boxes in pixels of the network input.
        input_size: (H, W) of the network input.
    """
    size, count = (semantic.shape[0], semantic.shape[1]), len(detections.labels)
    masks, quality = MaskWindows(size, count), probs.new_zeros(count)
    region_of_label = {label: region for region, label in enumerate(region_labels.tolist())}
    windows = pixel_windows(restore_boxes(detections.boxes, input_size, size), size).tolist()
    for number, (label, (x0, y0, x1, y1)) in enumerate(zip(detections.labels.tolist(), windows, strict=True)):
        if x1 > x0 and y1 > y0:
            masks.put(number, (x0, y0, x1, y1), (semantic[y0:y1, x0:x1] == label).cpu().numpy())
            quality[number] = estimate_iou(probs[region_of_label[label], y0:y1, x0:x1][None])[0]
    return WindowPrediction(detections, masks, semantic, quality)
