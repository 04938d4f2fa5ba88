"""Mean intersection over union after PASCAL VOC: one confusion matrix over the whole set, 255 is void.

The mean runs over the background and the classes that occur in the ground truth (on the whole of VOC: all 21).
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from dasnet_lightning.types import IGNORE_INDEX


class SemanticIoU(Metric):
    """Accumulates class maps; `compute` gives the IoU by class, from the counts of all processes, and nan where the ground
    truth has no such pixel. `figures` has their mean too. All processes must call it.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count an image: prediction Int64 [H W] and target UInt8 or Int64 [H W], 255 void."""
        counted = target != IGNORE_INDEX
        index = target[counted].long() * self.num_classes + prediction[counted].long()
        counts = torch.bincount(index, minlength=self.num_classes**2).reshape(self.confusion.shape)
        self.confusion = self.confusion + counts  # not in place: the state may stem from inference mode

    def compute(self) -> Float[Tensor, " c"]:
        confusion = self.confusion.double()
        truth, predicted, both = confusion.sum(dim=1), confusion.sum(dim=0), confusion.diagonal()
        return torch.where(truth > 0, both / (truth + predicted - both).clamp(min=1), torch.nan)

    def by_class(self, class_names: Sequence[str]) -> Mapping[str, float]:
        """`miou`, and `iou/<class>` by class name."""
        by_class = self.compute()
        named = {f"iou/{name}": value for name, value in zip(class_names, by_class.tolist(), strict=True)}
        return {"miou": float(by_class.nanmean())} | named
