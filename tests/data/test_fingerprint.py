"""The fingerprint of a data set: equal for equal data, and every change is named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_builders import (
    VocObject,
    annotation,
    coco_content,
    filled_indices,
    make_coco,
    make_sbd,
    make_voc,
    square_polygon,
    write_index_picture,
    write_instances,
)

from dasnet_lightning.data.fingerprint import describe_changes, fingerprint
from dasnet_lightning.data.sources.open import open_dataset

Content = dict[str, Any]
CAT = VocObject("cat", (6, 6, 15, 15))


def write_set(root: Path, change: Callable[[Content], None] = lambda _: None) -> Path:
    """Four training and two validation images with a box and a mask each; `change` edits both annotation files."""
    for split, number in (("train", 4), ("val", 2)):
        rows = [annotation(n, image=n, segmentation=square_polygon()) for n in range(1, number + 1)]
        content = coco_content(rows, num_images=number)
        change(content)
        make_coco(root, content, f"{split}.json", split)
    return root


def changes(root: Path, before: dict[str, Any]) -> list[str]:
    after = fingerprint(open_dataset(root))
    assert json.loads(json.dumps(after)) == after
    return describe_changes(before, after)


def remove_mask(content: Content) -> None:
    content["annotations"][0]["segmentation"] = []


def move_mask(content: Content) -> None:
    content["annotations"][1]["segmentation"] = square_polygon(5, 6)


def rename(content: Content) -> None:
    content["categories"][0]["name"], content["categories"][1]["name"] = "dog", "cat"


def add_class(content: Content) -> None:
    content["categories"].append({"id": 9, "name": "crab"})


def add_box(content: Content) -> None:
    content["annotations"] += [annotation(50, image=1), annotation(51, image=1)]


def drop_image(content: Content) -> None:
    if len(content["images"]) > 2:
        content["images"].pop()
        content["annotations"].pop()


def change_nothing_that_counts(content: Content) -> None:
    """As another export does: other annotation ids, another order, further fields."""
    for row in content["annotations"]:
        row["id"] += 1000
        row["area"] = 3
    content["annotations"].reverse()
    content["info"] = {"date": "today"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove_mask, ["1 images with other masks, 1 masks fewer (1) in training",
                       "1 images with other masks, 1 masks fewer (1) in validation"]),
        (move_mask, ["1 images with other masks (2) in training", "1 images with other masks (2) in validation"]),
        (rename, ["class 'cat' became 'dog'", "class 'dog' became 'cat'"]),
        (add_class, ["new classes: crab"]),
        (add_box, ["1 images with other boxes, classes or sizes, 2 boxes more (1) in training",
                   "1 images with other boxes, classes or sizes, 2 boxes more (1) in validation"]),
        (drop_image, ["1 images fewer (4) in training"]),
        (change_nothing_that_counts, []),
    ],
)  # fmt: skip
def test_changes_of_a_coco_set_are_named(
    tmp_path: Path, change: Callable[[Content], None], expected: list[str]
) -> None:
    before = fingerprint(open_dataset(write_set(tmp_path)))
    assert changes(tmp_path, before) == []
    assert changes(write_set(tmp_path, change), before) == expected


def test_another_image_file_is_noticed_by_its_size_and_a_touched_one_is_not(tmp_path: Path) -> None:
    before = fingerprint(open_dataset(write_set(tmp_path)))
    image = tmp_path / "train" / "a3.jpg"
    os.utime(image, (1, 1))
    assert changes(tmp_path, before) == []
    image.write_bytes(image.read_bytes() + b"0")
    assert changes(tmp_path, before) == ["1 image files of another size (3) in training"]


def test_mask_files_are_compared_by_content(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {name: [CAT] for name in "abcd"}, "abc", {"train": ["a", "b"], "val": ["c", "d"]})
    before = fingerprint(open_dataset(root))
    write_index_picture(root / "SegmentationObject" / "a.png", filled_indices([(6, 6, 15, 14)]))
    assert changes(root, before) == ["1 images with other masks (a) in training"]
    (root / "SegmentationObject" / "c.png").unlink()
    assert changes(root, before)[1:] == ["1 images with other masks, 1 masks fewer (c) in validation"]
    for path in (root / "SegmentationObject").iterdir():
        path.unlink()
    assert fingerprint(open_dataset(root))["files"] == {"train": {}, "val": {}}


def test_parts_of_a_union_are_compared_by_their_masks(tmp_path: Path) -> None:
    objects = {f"2008_{number}": [(8, (5, 5, 15, 15))] for number in range(5)}
    make_sbd(tmp_path / "sbd", objects)
    (tmp_path / "parts.yaml").write_text("train: [{root: sbd, split: train}]\n")
    before = fingerprint(open_dataset(tmp_path / "parts.yaml"))
    assert describe_changes(before, fingerprint(open_dataset(tmp_path / "parts.yaml"))) == []
    picture = np.zeros((30, 40), dtype=np.uint8)
    picture[5:15, 5:15] = 1
    picture[7, 7] = 0
    write_instances(tmp_path / "sbd", "2008_3", picture, [8])
    (change,) = describe_changes(before, fingerprint(open_dataset(tmp_path / "parts.yaml")))
    assert change.startswith("1 images with other masks (2008_3)")


def test_a_fingerprint_of_another_version_is_not_compared(tmp_path: Path) -> None:
    before = fingerprint(open_dataset(write_set(tmp_path)))
    assert describe_changes({**before, "version": 0, "class_names": []}, before) == []
