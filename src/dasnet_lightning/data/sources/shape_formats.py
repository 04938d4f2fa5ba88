"""Detection of the formats of drawn shapes."""

from pathlib import Path

from dasnet_lightning.data.sources.cvat_masks import find_cvat_masks
from dasnet_lightning.data.sources.cvat_xml import find_cvat
from dasnet_lightning.data.sources.label_studio import find_label_studio
from dasnet_lightning.data.sources.labelme import find_labelme
from dasnet_lightning.data.sources.shape_data import ShapeData
from dasnet_lightning.data.sources.voc_flat import find_flat_voc
from dasnet_lightning.data.sources.yolo import find_yolo


def find_marked(root: Path) -> ShapeData | None:
    """Read a data set with files that only one format has, so that it is looked for first; None if there is none."""
    if root.is_dir():
        return find_cvat_masks(root) or find_label_studio(root) or find_labelme(root)
    return {".json": _find_json, ".xml": find_cvat, ".data": find_yolo}.get(root.suffix.lower(), lambda _: None)(root)


def find_unmarked(root: Path) -> ShapeData | None:
    """Read a data set of the formats that are tried if no other one fits; None if these do not fit either."""
    return find_yolo(root) or find_cvat(root) or find_flat_voc(root)


def _find_json(file: Path) -> ShapeData | None:
    return find_label_studio(file) or find_labelme(file)
