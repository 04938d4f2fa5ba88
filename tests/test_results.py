"""VOC's result files: the numbers, names and places that its server expects."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dasnet_lightning.data.sources.voc_xml import VOC_CLASSES, read_xml
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.inference.voc_results import (
    VocResults,
    class_map,
    class_map_path,
    detection_lines,
    detections_path,
    instance_results,
    instances_path,
    write_class_map,
)


def make_segmentation(names: tuple[str, ...] = ("background", "dog", "cat"), size: tuple[int, int] = (20, 30)):
    """A dog above a cat; labels in an order that is not VOC's."""
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 0:8, 5:15] = True
    masks[1, 10:20, 0:30] = True
    semantic = torch.zeros(size, dtype=torch.int64)
    semantic[masks[0]], semantic[masks[1]] = 1, 2
    return Segmentation(
        image=np.zeros((*size, 3), dtype=np.uint8),
        boxes=torch.tensor([[5.0, 0.0, 15.0, 8.0], [0.0, 10.0, 30.0, 20.0]]),
        labels=torch.tensor([1, 2]),
        scores=torch.tensor([0.75, 0.5]),
        masks=masks,
        semantic=semantic,
        class_names=names,
    )


def test_class_maps_hold_vocs_numbers_in_vocs_palette(tmp_path: Path) -> None:
    segmentation = make_segmentation()
    path = class_map_path(tmp_path, "2008_000001")
    assert path == tmp_path / "results/VOC2012/Segmentation/comp6_test_cls/2008_000001.png"
    write_class_map(segmentation, path, VOC_CLASSES)
    with Image.open(path) as picture:
        assert (picture.mode, picture.size) == ("P", (30, 20))
        numbers = np.asarray(picture)
        palette = np.array(picture.getpalette()).reshape(-1, 3)
    assert numbers[0, 5] == 12  # dog
    assert numbers[19, 29] == 8  # cat
    assert np.bincount(numbers.ravel(), minlength=21)[[0, 8, 12]].tolist() == [600 - 300 - 80, 300, 80]
    assert palette[:3].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert palette[12].tolist() == [64, 0, 128]
    np.testing.assert_array_equal(numbers, class_map(segmentation, VOC_CLASSES))


def test_detections_are_one_based_and_inclusive(tmp_path: Path) -> None:
    lines = detection_lines(make_segmentation(), "2008_000001")
    assert lines == {
        "dog": ["2008_000001 0.750000 6.00 1.00 15.00 8.00"],
        "cat": ["2008_000001 0.500000 1.00 11.00 30.00 20.00"],
    }
    # read back as an annotation, they are the boxes that they were written from
    sides = zip(("xmin", "ymin", "xmax", "ymax"), lines["dog"][0].split()[2:], strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    file = tmp_path / "x.xml"
    file.write_text(f"<annotation><object><name>dog</name><bndbox>{box}</bndbox></object></annotation>")
    assert read_xml(file).objects[0].box == (5, 0, 15, 8)


def test_all_files_of_a_set_are_written(tmp_path: Path) -> None:
    results = VocResults(tmp_path, VOC_CLASSES, split="val", own_data=False)
    results.add("a", make_segmentation())
    results.add("b", make_segmentation())
    results.write()
    folder = tmp_path / "results" / "VOC2012"
    assert sorted(path.name for path in (folder / "Segmentation" / "comp5_val_cls").iterdir()) == ["a.png", "b.png"]
    assert sorted(path.name for path in (folder / "Main").iterdir()) == sorted(
        f"comp3_det_val_{name}.txt" for name in VOC_CLASSES[1:]
    )
    text = detections_path(tmp_path, "cat", "val", own_data=False).read_text()
    assert [line.split()[0] for line in text.splitlines()] == ["a", "b"]
    assert detections_path(tmp_path, "bus", "val", own_data=False).read_text() == ""
    instances = json.loads(instances_path(tmp_path, "val", own_data=False).read_text())
    assert [(item["image_id"], item["category_id"]) for item in instances] == [("a", 12), ("a", 8), ("b", 12), ("b", 8)]


def test_instances_can_be_measured_by_coco(tmp_path: Path) -> None:
    """Results equal to the truth have an average precision of 1."""
    found = instance_results(make_segmentation(), "a", VOC_CLASSES)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": "a", "height": 20, "width": 30}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(VOC_CLASSES) if number],
        "annotations": [item | {"id": number, "iscrowd": 0, "area": 100} for number, item in enumerate(found, start=1)],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(found), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_classes_that_voc_does_not_have_are_refused(tmp_path: Path) -> None:
    strange = make_segmentation(("background", "dog", "zebra"))
    results = VocResults(tmp_path, VOC_CLASSES)
    with pytest.raises(ConfigError, match=r"'zebra': not among VOC's classes, expected only aeroplane, "):
        results.add("a", strange)
    assert list(tmp_path.iterdir()) == []
