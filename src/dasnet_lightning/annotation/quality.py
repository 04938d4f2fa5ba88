"""Quality of the masks of a segmentation."""

from dasnet_lightning.inference.segmentation import Segmentation

DIGITS = 4


def quality_of(segmentation: Segmentation) -> list[float]:
    """Return the estimated IoU of each mask with the true one, 0 to 1, rounded to four digits.

    It is the field `quality` of the segmentation. If that is missing, the score of the mask stands for it.
    """
    values = getattr(segmentation, "quality", None)
    chosen = segmentation.scores if values is None else values
    return [round(min(1.0, max(0.0, float(value))), DIGITS) for value in chosen.tolist()]
