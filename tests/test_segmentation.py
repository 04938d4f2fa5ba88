"""The result record: shapes held, COCO results that pycocotools reads back exactly, pictures written."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_lengths

from dasnet_lightning.data.sources.formats import open_splits
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.inference.segmentation import Segmentation


def make_segmentation(count: int = 2) -> Segmentation:
    masks = torch.zeros(count, 40, 50, dtype=torch.bool)
    for index in range(count):
        masks[index, 5 + index : 20, 10 : 30 + index] = True
    return Segmentation(
        image=np.full((40, 50, 3), 90, dtype=np.uint8),
        boxes=torch.tensor([[10.0, 5.0, 30.5, 20.0], [10.0, 6.0, 31.0, 20.0]])[:count],
        labels=torch.tensor([1, 2])[:count],
        scores=torch.tensor([0.75, 0.5])[:count],
        masks=masks,
        semantic=masks.any(dim=0).long() if count else torch.zeros(40, 50, dtype=torch.int64),
        class_names=("background", "cat", "dog"),
    )


def test_coco_results_hold_the_boxes_and_the_exact_masks() -> None:
    segmentation = make_segmentation()
    results = json.loads(json.dumps(segmentation.to_coco(7)))
    assert [result["category_id"] for result in results] == [1, 2]
    assert {result["image_id"] for result in results} == {7}
    assert results[0]["bbox"] == [10.0, 5.0, 20.5, 15.0]
    assert results[0]["score"] == 0.75
    for result, mask in zip(results, segmentation.masks.numpy(), strict=True):
        assert np.array_equal(run_lengths.decode(result["segmentation"]).astype(bool), mask)


def test_original_category_ids_are_exported() -> None:
    segmentation = replace(make_segmentation(), category_ids=(0, 17, 18))
    assert [result["category_id"] for result in segmentation.to_coco("a/b.jpg")] == [17, 18]


def test_no_objects_is_a_result_too() -> None:
    segmentation = make_segmentation(0)
    assert len(segmentation) == 0
    assert segmentation.to_coco(1) == []
    assert segmentation.draw().width >= 50


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", np.zeros((40, 50), dtype=np.uint8), "image has shape"),
        ("boxes", torch.zeros(2, 5), "boxes has shape"),
        ("labels", torch.zeros(3, dtype=torch.int64), "labels has shape"),
        ("scores", torch.zeros(1), "scores has shape"),
        ("masks", torch.zeros(2, 50, 40, dtype=torch.bool), "masks has shape"),
        ("semantic", torch.zeros(1, 40, 50, dtype=torch.int64), "semantic has shape"),
        ("category_ids", (1, 2), "category_ids has 2 entries, expected one for each of the 3 class names"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make_segmentation(), **{field: value})


def test_the_drawing_is_enlarged_and_saved(tmp_path: Path) -> None:
    segmentation = make_segmentation()
    assert segmentation.draw().size == (500, 400)
    segmentation.save(tmp_path / "objects.png")
    segmentation.save(tmp_path / "classes.jpg", semantic=True)
    with Image.open(tmp_path / "objects.png") as objects, Image.open(tmp_path / "classes.jpg") as classes:
        assert objects.size == (500, 400)
        assert classes.height > 400  # with the legend
    with pytest.raises(ConfigError, match=r"'.pict' is not an image format"):
        segmentation.save(tmp_path / "objects.pict")


def test_polygons_cover_the_masks_and_a_tolerance_leaves_corners_out() -> None:
    masks = torch.zeros(1, 40, 50, dtype=torch.bool)
    rows, columns = np.mgrid[:40, :50]
    masks[0] = torch.from_numpy((rows - 20) ** 2 + (columns - 25) ** 2 < 150)
    masks[0, 18:22, 23:27] = False  # a hole
    masks[0, 2:5, 2:5] = True  # a second part
    segmentation = replace(make_segmentation(1), masks=masks, semantic=masks[0].long())
    sizes = []
    for tolerance, least in ((0.0, 1.0), (1.0, 0.93)):
        rings = segmentation.to_polygons(tolerance)[0]
        assert len(rings) == 2
        # pycocotools joins polygons by the even-odd rule within each of them
        runs = run_lengths.merge(run_lengths.frPyObjects([ring.ravel().tolist() for ring in rings], 40, 50))
        drawn = run_lengths.decode(runs).astype(bool)
        mask = masks[0].numpy()
        assert (drawn & mask).sum() / (drawn | mask).sum() >= least
        sizes.append(sum(map(len, rings)))
    assert sizes[1] < 0.6 * sizes[0]


def test_labelme_and_yolo_are_read_back(tmp_path: Path) -> None:
    segmentation = make_segmentation()
    (tmp_path / "labelme").mkdir()
    segmentation_file = tmp_path / "labelme/a.json"
    Image.fromarray(segmentation.image).save(tmp_path / "labelme/a.png")
    segmentation_file.write_text(json.dumps(segmentation.to_labelme(tmp_path / "labelme/a.png", 0)))
    for split in ("train", "val"):
        (tmp_path / "yolo/labels" / split).mkdir(parents=True)
        (tmp_path / "yolo/images" / split).mkdir(parents=True)
        Image.fromarray(segmentation.image).save(tmp_path / "yolo/images" / split / "a.png")
        (tmp_path / "yolo/labels" / split / "a.txt").write_text("\n".join(segmentation.to_yolo(0)))
    (tmp_path / "yolo/data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    sources = (
        open_splits(tmp_path / "labelme", False, "error").train,
        open_splits(tmp_path / "yolo", False, "error").train,
    )
    for source in sources:
        record = source.records[0]
        assert [source.class_names[item.label] for item in record.objects] == ["cat", "dog"]
        assert np.array_equal(source.load_masks(record, [0, 1]).masks, segmentation.masks.numpy())
    assert [item.by_model for item in sources[0].records[0].objects] == [True, True]


def test_supervision_gets_the_same_objects() -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    detections = make_segmentation().to_supervision()
    assert detections.class_id.tolist() == [1, 2]
    assert np.array_equal(detections.mask, make_segmentation().masks.numpy())


def test_a_missing_supervision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match="supervision is not installed"):
        make_segmentation().to_supervision()
