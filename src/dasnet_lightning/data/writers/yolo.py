"""Writer of YOLO data sets: `data.yaml`, `images/SPLIT/` and `labels/SPLIT/NAME.txt`.

The row of an object with a mask is its class and a polygon. Without a mask it has five numbers, class and box.
`model_masks.txt` lists the rows that a model made.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml

from dasnet_lightning.data.sources.model_masks import YOLO_FILE, yolo_mark
from dasnet_lightning.data.writers.base import ImageLabels, ObjectLabel, Writer, differs_from_box, write_new
from dasnet_lightning.data.writers.outlines import join_rings
from dasnet_lightning.storage.atomic import write_text

IGNORE_LOST = "crowd or difficult objects become ordinary ones, because YOLO has no flag for them"
VOID_LOST = "images have void pixels, which become background, because YOLO has no void"
BOX_LOST = "boxes differ from their masks by more than a pixel, YOLO keeps the extent of the mask"


class YoloWriter(Writer):
    """Writer of YOLO's text files; class 0 is the first class after the background."""

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        super().__init__(root, class_names)
        self._splits: list[str] = []
        self._marks: list[str] = []

    def image_folder(self, split: str) -> Path:
        return self.root / "images" / split

    def add(self, split: str, labels: ImageLabels) -> None:
        if split not in self._splits:
            self._splits.append(split)
        file = (self.root / "labels" / split / labels.file_name).with_suffix(".txt")
        rows = [yolo_row(labels, item) for item in labels.objects]
        write_new(file, "".join(f"{row}\n" for row in rows).encode())
        name = file.relative_to(self.root).as_posix()
        pairs = zip(rows, labels.objects, strict=True)
        self._marks += [yolo_mark(name, row) for row, item in pairs if item.by_model and item.mask is not None]
        self.count_loss(IGNORE_LOST, sum(item.ignore for item in labels.objects))
        self.count_loss(VOID_LOST, labels.void is not None)
        masked = [item for item in labels.objects if item.mask is not None]
        self.count_loss(BOX_LOST, sum(differs_from_box(labels.outlines(item), item.box) for item in masked))

    def finish(self) -> None:
        # without the key "path", folders are relative to the file
        content = {split: f"images/{split}" for split in self._splits}
        names = list(self.class_names[1:])
        text = yaml.safe_dump({**content, "nc": len(names), "names": names}, sort_keys=False, allow_unicode=True)
        write_text(self.root / "data.yaml", text)
        if self._marks:
            write_text(self.root / YOLO_FILE, "".join(f"{mark}\n" for mark in self._marks))


def yolo_row(labels: ImageLabels, item: ObjectLabel) -> str:
    """Return the row of one object; coordinates are fractions of the image's width and height."""
    height, width = labels.size
    if item.mask is None:
        x0, y0, x1, y1 = item.box
        values: Sequence[float] = (
            (x0 + x1) / 2 / width,
            (y0 + y1) / 2 / height,
            (x1 - x0) / width,
            (y1 - y0) / height,
        )
    else:
        rings = labels.outlines(item)
        # an object has one polygon; several parts may overlap, so they are traced again
        ring = rings[0] if len(rings) == 1 else join_rings(labels.traced(item))
        values = (ring / (width, height)).ravel().tolist()
    return " ".join([str(item.label - 1), *(f"{value:.12g}" for value in values)])
