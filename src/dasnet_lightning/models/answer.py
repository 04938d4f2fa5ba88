"""What the network answers for one image; both tasks answer the same."""

from dataclasses import dataclass

from jaxtyping import Bool, Int64
from torch import Tensor

from dasnet_lightning.types import Detections


@dataclass(frozen=True, eq=False)
class Answer:
    """The objects and the class map of an image, at the size that was asked for.

    found: the detections that were segmented, boxes in input pixels, with the scores that rank them. `masks[i]` never
    leaves the box of detection i. semantic: the class of each pixel, 0 for background.
    """

    found: Detections
    masks: Bool[Tensor, "n H0 W0"]
    semantic: Int64[Tensor, "H0 W0"]
