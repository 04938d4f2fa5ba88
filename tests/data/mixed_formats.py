"""A data set written in every format, and its training images as they reach a task."""

import shutil
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from dasnet_lightning.data.augmentation.transforms import build_transform
from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.data.sources.drawing import count_runs
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.data.writers.base import read_labels

OPENERS = ("coco", "voc", "yolo", "labelme", "cvat")
SIDE = 64


def build_set(data: DataSet) -> SegmentationDataset:
    """The training images without augmentation, with all their masks."""
    source = data.train
    mask_ids = frozenset(record.image_id for record in source.records)
    return SegmentationDataset(source, source.records, mask_ids, build_transform("none", (SIDE, SIDE)), seed=0)


def write_cvat(data: DataSet, root: Path) -> None:
    """Write CVAT XML 1.1 for images: a mask as run lengths of its window, a box for an object without a mask."""
    images = []
    for split in ("train", "val"):
        source = getattr(data, split)
        for number, record in enumerate(source.records):
            (root / "images").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.path, root / "images" / record.path.name)
            labels, _ = read_labels(source, record, record.path.name)
            shapes = []
            for item in labels.objects:
                name = quoteattr(source.class_names[item.label])
                if item.mask is None:
                    edges = zip(("xtl", "ytl", "xbr", "ybr"), item.box, strict=True)
                    written = " ".join(f'{key}="{value!r}"' for key, value in edges)
                    shapes.append(f"<box label={name} {written}/>")
                    continue
                mask = labels.mask(item)
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                runs = ", ".join(map(str, count_runs(window.ravel()).tolist()))
                place = f'left="{columns[0]}" top="{rows[0]}" width="{window.shape[1]}" height="{window.shape[0]}"'
                shapes.append(f'<mask label={name} rle="{runs}" {place}/>')
            size = f'width="{record.size[1]}" height="{record.size[0]}"'
            name = record.path.name
            images.append(
                f'<image id="{split}{number}" name="{name}" subset="{split}" {size}>{"".join(shapes)}</image>'
            )
    classes = "".join(f"<label><name>{name}</name></label>" for name in data.train.class_names[1:])
    text = f"<annotations><meta><labels>{classes}</labels></meta>{''.join(images)}</annotations>"
    (root / "annotations.xml").write_text(text)
