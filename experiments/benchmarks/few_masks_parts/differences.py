"""Differences of two methods on the same objects, with intervals over images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .measure import resample_means
from .results import INDEX, OBJECT_COLUMNS, Key, Row, objects_path, read_rows

REFERENCE = "zoom"


class PairedDifferences:
    """Differences of mean IoU on the same objects: that of `REFERENCE` minus that of another row.

    Args:
        path: the file of results; the values of the objects stand beside it.
    """

    def __init__(self, path: Path) -> None:
        self.lists = {
            (*_key(row), row["kind"]): np.array(row["iou_in_thousandths"].split(), dtype=np.float64)
            for row in read_rows(objects_path(path), OBJECT_COLUMNS).values()
        }

    def describe(self, rows: Sequence[Row], budget: str) -> str:
        """Return the difference and its interval over resampled images, averaged over seeds; empty if it is unknown.

        Args:
            rows: the rows of a method, one for each seed.
            budget: the budget of the reference.
        """
        found = [difference for row in rows if (difference := self._of(row, budget)) is not None]
        if not found:
            return ""
        middle, low, high = (100 * value for value in np.mean(found, axis=0))
        return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"

    def _of(self, row: Row, budget: str) -> tuple[float, float, float] | None:
        dataset, backbone, method, own_budget, seed = _key(row)
        index = self.lists.get((dataset, backbone, INDEX, "", "", "image"))
        main = self.lists.get((dataset, backbone, INDEX, "", "", "main"))
        reference = self.lists.get((dataset, backbone, REFERENCE, budget, seed, "true"))
        own = self.lists.get((dataset, backbone, method, own_budget, seed, "true"))
        if method == REFERENCE or index is None or main is None or reference is None or own is None:
            return None
        delta = (reference - own)[main > 0] / 1000
        low, high = np.quantile(resample_means(index[main > 0], delta), (0.025, 0.975))
        return float(delta.mean()), float(low), float(high)


def _key(row: Row) -> Key:
    return row["dataset"], row["backbone"], row["method"], row["budget"], row["seed"]
