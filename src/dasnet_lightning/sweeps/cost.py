"""What boxes and masks cost to draw, and what the next masks are worth."""

from dataclasses import dataclass

BOX_SECONDS = 7.0  # extreme clicking (Papadopoulos et al., ICCV 2017); drawing corners takes 25 to 35 s
MASK_SECONDS = 79.2  # polygons of COCO (Lin et al., ECCV 2014: 22 worker hours for 1,000 masks)


@dataclass(frozen=True)
class CostModel:
    """Cost of the labels, in seconds of work or in any other unit.

    Attributes:
        box: cost of one box.
        mask: cost of one mask, in addition to its box.
        unit: name of the unit.
    """

    box: float = BOX_SECONDS
    mask: float = MASK_SECONDS
    unit: str = "s"

    def total(self, boxes: int, masks: float) -> float:
        """Return the cost of boxes and masks."""
        return boxes * self.box + masks * self.mask

    def describe(self, cost: float) -> str:
        """Return a cost as text; seconds are shown in hours from one hour on."""
        if self.unit != "s":
            return f"{cost:,.0f} {self.unit}"
        return f"{cost / 3600:,.1f} h" if cost >= 3600 else f"{cost / 60:,.0f} min"
