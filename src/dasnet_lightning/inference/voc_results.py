"""Results as PASCAL VOC's evaluation server and development kit read them, and mAP^r results in COCO's form.

Below one folder: `results/VOC2012/Segmentation/comp6_test_cls/ID.png` (class numbers in VOC's palette),
`results/VOC2012/Main/comp4_det_test_CLASS.txt` (boxes, 1-based and inclusive), and `results/VOC2012/Instances/
comp6_test_inst.json`, of which the server knows nothing. comp5 and comp3 are for training on VOC's data alone, comp6 and
comp4 for all other training. Classes are matched by their names: `class_names` is VOC's order, background first.
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
    """VOC's number of each label of a segmentation. Raises ConfigError where a class is none of VOC's."""
    own = segmentation.class_names
    strange = [name for name in own[1:] if name not in class_names[1:]]
    if strange:
        raise ConfigError(
            f"{', '.join(map(repr, strange[:5]))}: no class of VOC's, whose result files know only "
            f"{', '.join(class_names[1:])}"
        )
    return (0, *(list(class_names).index(name) for name in own[1:]))


def class_map(segmentation: Segmentation, class_names: Sequence[str]) -> UInt8[np.ndarray, "H W"]:
    """VOC's class number of every pixel, 0 for background."""
    numbers = np.array(class_numbers(segmentation, class_names), dtype=np.uint8)
    return numbers[segmentation.semantic.numpy()]


def write_class_map(segmentation: Segmentation, path: Path, class_names: Sequence[str]) -> None:
    """Write the class map as a picture with VOC's palette, whose pixels are the class numbers."""
    picture = Image.fromarray(class_map(segmentation, class_names)).convert("L")
    picture.putpalette(voc_palette().ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def detection_lines(segmentation: Segmentation, image_id: str) -> dict[str, list[str]]:
    """For each class found, its lines `ID SCORE XMIN YMIN XMAX YMAX`; pixels count from 1 and the last one belongs in."""
    lines: dict[str, list[str]] = {}
    for box, label, score in zip(
        segmentation.boxes.tolist(), segmentation.labels.tolist(), segmentation.scores.tolist(), strict=True
    ):
        x0, y0, x1, y1 = box
        line = f"{image_id} {score:.6f} {x0 + 1:.2f} {y0 + 1:.2f} {x1:.2f} {y1:.2f}"
        lines.setdefault(segmentation.class_names[label], []).append(line)
    return lines


def instance_results(segmentation: Segmentation, image_id: str, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The instances as COCO results whose categories are VOC's numbers; what mAP^r is measured on."""
    return replace(segmentation, category_ids=class_numbers(segmentation, class_names)).to_coco(image_id)


def class_map_path(root: Path, image_id: str, split: str = "test", own_data: bool = True) -> Path:
    """Where the server wants the class map of an image. own_data: trained on more than VOC's data."""
    return root / "results" / YEAR / "Segmentation" / f"comp{6 if own_data else 5}_{split}_cls" / f"{image_id}.png"


def detections_path(root: Path, class_name: str, split: str = "test", own_data: bool = True) -> Path:
    """Where the server wants the detections of a class."""
    return root / "results" / YEAR / "Main" / f"comp{4 if own_data else 3}_det_{split}_{class_name}.txt"


def instances_path(root: Path, split: str = "test", own_data: bool = True) -> Path:
    """Where the instances of all images go."""
    return root / "results" / YEAR / "Instances" / f"comp{6 if own_data else 5}_{split}_inst.json"


def write_detections(
    lines: Mapping[str, Sequence[str]],
    root: Path,
    class_names: Sequence[str],
    split: str = "test",
    own_data: bool = True,
) -> None:
    """Write the detections of all images, one file for every class of VOC's, empty where nothing was found."""
    for name in class_names[1:]:
        text = "".join(f"{line}\n" for line in lines.get(name, ()))
        write_text(detections_path(root, name, split, own_data), text)


class VocResults:
    """Collects the results of one image after the other; class maps are written at once, the other files by `write`.

    root: the folder that gets `results`. class_names: VOC's, background first. split, own_data: as in `class_map_path`.
    """

    def __init__(self, root: Path, class_names: Sequence[str], split: str = "test", own_data: bool = True) -> None:
        self.root = root
        self.class_names = tuple(class_names)
        self.split = split
        self.own_data = own_data
        self._lines: dict[str, list[str]] = {}
        self._instances: list[dict[str, Any]] = []

    def add(self, image_id: str, segmentation: Segmentation) -> None:
        """Take the results of one image. Raises ConfigError where a class is none of VOC's."""
        path = class_map_path(self.root, image_id, self.split, self.own_data)
        write_class_map(segmentation, path, self.class_names)
        for name, lines in detection_lines(segmentation, image_id).items():
            self._lines.setdefault(name, []).extend(lines)
        self._instances += instance_results(segmentation, image_id, self.class_names)

    def write(self) -> None:
        """Write the detections and the instances of all images so far."""
        write_detections(self._lines, self.root, self.class_names, self.split, self.own_data)
        write_text(instances_path(self.root, self.split, self.own_data), json.dumps(self._instances))
