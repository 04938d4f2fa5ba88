"""PASCAL VOC's mean intersection over union from one confusion matrix over the whole set, without void pixels.

The mean covers the background and the classes that occur in the ground truth, on the whole of VOC all 21.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

VOC_VOID = 255


def class_iou(confusion: Tensor) -> Float[Tensor, " c"]:
    """Return the IoU of each class from a confusion matrix (rows: ground truth); nan without a pixel in the ground truth."""
    counts = confusion.double()
    target, prediction, intersection = counts.sum(dim=1), counts.sum(dim=0), counts.diagonal()
    union = target + prediction - intersection
    return torch.where(target > 0, intersection / union.clamp(min=1), torch.nan)


class SemanticIoU(Metric):
    """Metric that accumulates class maps; `compute` returns the IoU of each class over all ranks.

    The IoU of a class without a pixel in the ground truth is nan. All ranks must call `compute` or `by_class`.

    Args:
        num_classes: number of classes with background.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add an image.

        Args:
            prediction: class map [H, W].
            target: class map [H, W] of any integer type. Void is negative; so is 255 if it cannot be a class.
        """
        counted = target >= 0
        if self.num_classes <= VOC_VOID:
            counted &= target != VOC_VOID
        index = target[counted].long() * self.num_classes + prediction[counted].long()
        counts = torch.bincount(index, minlength=self.num_classes**2).reshape(self.confusion.shape)
        self.confusion = self.confusion + counts  # not in place: the state can be an inference tensor

    def compute(self) -> Float[Tensor, " c"]:
        return class_iou(self.confusion)

    def by_class(self, class_names: Sequence[str]) -> Mapping[str, float]:
        """Return `miou`, and `iou/<class>` of each class; all nan if no image was added."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method")  # a set without any mask
            by_class = self.compute()
        named = {f"iou/{name}": value for name, value in zip(class_names, by_class.tolist(), strict=True)}
        return {"miou": float(by_class.nanmean())} | named
