"""Which of a validation's figures go to the log; all of them stay in the task's `figures`."""

from collections.abc import Mapping

LOGGED_BY_CLASS = ("iou", "apr50_area", "box_ap50")


def worth_logging(figures: Mapping[str, float]) -> dict[str, float]:
    """All means, and of the figures by class (`val/FIGURE/CLASS`) the few that say most: sets may have many classes."""
    return {
        key: value
        for key, value in figures.items()
        if key.count("/") == 1 or key.removeprefix("val/").startswith(LOGGED_BY_CLASS)
    }
