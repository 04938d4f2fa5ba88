"""Result files for PASCAL VOC's evaluation server and development kit, and instances for mAP^r as COCO results.

Files below the output folder:

* `results/VOC2012/Segmentation/comp6_test_cls/ID.png`: class numbers in VOC's palette.
* `results/VOC2012/Main/comp4_det_test_CLASS.txt`: boxes, 1-based and inclusive.
* `results/VOC2012/Instances/comp6_test_inst.json`: instances, which the server does not read.

comp5 and comp3 are for training on VOC's data only, comp6 and comp4 for any other training. Classes are matched by name;
`class_names` is in VOC's order, background first.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.storage.atomic import write_text
from dasnet_lightning.visualization import voc_palette

YEAR = "VOC2012"


def class_numbers(segmentation: Segmentation, class_names: Sequence[str]) -> tuple[int, ...]:
    """Return VOC's number of each label of a segmentation; raise ConfigError for a class that VOC does not have."""
    names = segmentation.class_names[1:]
    unknown = [name for name in names if name not in class_names[1:]]
    if unknown:
        raise ConfigError(
            f"{', '.join(map(repr, unknown[:5]))}: not among VOC's classes, expected only {', '.join(class_names[1:])}"
        )
    return (0, *(list(class_names).index(name) for name in names))


def class_map(segmentation: Segmentation, class_names: Sequence[str]) -> UInt8[np.ndarray, "H W"]:
    """Return VOC's class number of each pixel, 0 for background."""
    numbers = np.array(class_numbers(segmentation, class_names), dtype=np.uint8)
    return numbers[segmentation.semantic.numpy()]


def write_class_map(segmentation: Segmentation, path: Path, class_names: Sequence[str]) -> None:
    """Write the class map as an indexed PNG of class numbers with VOC's palette."""
    picture = Image.fromarray(class_map(segmentation, class_names)).convert("L")
    picture.putpalette(voc_palette().ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def detection_lines(segmentation: Segmentation, image_id: str) -> dict[str, list[str]]:
    """Return the lines `ID SCORE XMIN YMIN XMAX YMAX` of each detected class; coordinates are 1-based and inclusive."""
    lines: dict[str, list[str]] = {}
    for box, label, score in zip(
        segmentation.boxes.tolist(), segmentation.labels.tolist(), segmentation.scores.tolist(), strict=True
    ):
        x0, y0, x1, y1 = box
        line = f"{image_id} {score:.6f} {x0 + 1:.2f} {y0 + 1:.2f} {x1:.2f} {y1:.2f}"
        lines.setdefault(segmentation.class_names[label], []).append(line)
    return lines


def instance_results(segmentation: Segmentation, image_id: str, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the instances as COCO results with VOC's class numbers as categories, for mAP^r."""
    return replace(segmentation, category_ids=class_numbers(segmentation, class_names)).to_coco(image_id)


def class_map_path(root: Path, image_id: str, split: str = "test", own_data: bool = True) -> Path:
    """Return the path of the class map of an image.

    Args:
        root: the output folder.
        image_id: VOC's id of the image.
        split: the image set.
        own_data: whether the model was trained on other data than VOC's, which decides the competition number.
    """
    return root / "results" / YEAR / "Segmentation" / f"comp{6 if own_data else 5}_{split}_cls" / f"{image_id}.png"


def detections_path(root: Path, class_name: str, split: str = "test", own_data: bool = True) -> Path:
    """Return the path of the detections of a class, with the arguments of `class_map_path`."""
    return root / "results" / YEAR / "Main" / f"comp{4 if own_data else 3}_det_{split}_{class_name}.txt"


def instances_path(root: Path, split: str = "test", own_data: bool = True) -> Path:
    """Return the path of the instances of all images, with the arguments of `class_map_path`."""
    return root / "results" / YEAR / "Instances" / f"comp{6 if own_data else 5}_{split}_inst.json"


def write_detections(
    lines: Mapping[str, Sequence[str]],
    root: Path,
    class_names: Sequence[str],
    split: str = "test",
    own_data: bool = True,
) -> None:
    """Write one file of detections for each class of VOC, empty for a class without detections.

    Args:
        lines: lines of all images by class name (`detection_lines`).
        root: the output folder.
        class_names: VOC's classes, background first.
        split: the image set.
        own_data: as for `class_map_path`.
    """
    for name in class_names[1:]:
        text = "".join(f"{line}\n" for line in lines.get(name, ()))
        write_text(detections_path(root, name, split, own_data), text)


class VocResults:
    """Writer of VOC's result files: `add` writes the class map of an image, `write` the files of all images.

    Args:
        root: the output folder, in which `results` is created.
        class_names: VOC's classes, background first.
        split: the image set.
        own_data: as for `class_map_path`.
    """

    def __init__(self, root: Path, class_names: Sequence[str], split: str = "test", own_data: bool = True) -> None:
        self.root = root
        self.class_names = tuple(class_names)
        self.split = split
        self.own_data = own_data
        self._lines: dict[str, list[str]] = {}
        self._instances: list[dict[str, Any]] = []

    def add(self, image_id: str, segmentation: Segmentation) -> None:
        """Add the results of one image; raise ConfigError for a class that VOC does not have."""
        path = class_map_path(self.root, image_id, self.split, self.own_data)
        write_class_map(segmentation, path, self.class_names)
        for name, lines in detection_lines(segmentation, image_id).items():
            self._lines.setdefault(name, []).extend(lines)
        self._instances += instance_results(segmentation, image_id, self.class_names)

    def write(self) -> None:
        """Write the detections and the instances of all images added so far."""
        write_detections(self._lines, self.root, self.class_names, self.split, self.own_data)
        write_text(instances_path(self.root, self.split, self.own_data), json.dumps(self._instances))
