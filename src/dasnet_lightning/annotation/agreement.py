"""Agreement of the model's masks with those that people drew, by class, the worst first."""

import csv
import io
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from dasnet_lightning.annotation.jobs import list_compared
from dasnet_lightning.annotation.journal import ImageMasks
from dasnet_lightning.data.records import ImageRecord, Source
from dasnet_lightning.data.writers.base import ImageLabels
from dasnet_lightning.rle import as_coco
from dasnet_lightning.storage.atomic import write_text

BY_CLASS, BY_OBJECT = "agreement.csv", "agreement_objects.csv"
GOOD = 0.75  # IoU of a mask that counts as right
COLUMNS = ("class", "objects", "mean IoU", f"IoU >= {GOOD}")
OBJECT_COLUMNS = ("split", "image", "object", "class", "IoU", "quality")

Row = tuple[str, str, str, str, float, float]


class Agreement:
    """IoU of each pair of a drawn and a predicted mask."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, split: str, source: Source, record: ImageRecord, labels: ImageLabels, found: ImageMasks) -> None:
        """Compare the masks of one image; masks that cannot be used are left out."""
        compared = set(list_compared(record))
        for place, counts, quality in found.objects:
            drawn = labels.objects[place].mask
            if place in compared and drawn is not None:
                pair = as_coco([counts.encode("ascii"), drawn], record.size)
                iou = round(float(coco_mask.iou(pair[:1], pair[1:], [0])[0, 0]), 4)
                item = record.objects[place]
                name = source.class_names[item.label]
                self._rows.append((split, record.image_id, item.object_id, name, iou, quality))

    def by_class(self) -> list[list[Any]]:
        """Return class, number of objects, mean IoU and the share of good masks, the worst class first."""
        classes: dict[str, list[float]] = {}
        for _, _, _, name, iou, _ in self._rows:
            classes.setdefault(name, []).append(iou)
        rows: list[list[Any]] = [
            [name, len(values), round(sum(values) / len(values), 4), round(_share(values), 4)]
            for name, values in classes.items()
        ]
        return sorted(rows, key=lambda row: (row[2], row[0]))

    def write(self, out: Path) -> None:
        """Write both tables as CSV."""
        write_text(out / BY_CLASS, _to_csv(COLUMNS, self.by_class()))
        worst_first = sorted(self._rows, key=lambda row: (row[4], *row[:3]))
        write_text(out / BY_OBJECT, _to_csv(OBJECT_COLUMNS, worst_first))


def _share(values: list[float]) -> float:
    return sum(value >= GOOD for value in values) / len(values)


def _to_csv(columns: tuple[str, ...], rows: Any) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    return text.getvalue()
