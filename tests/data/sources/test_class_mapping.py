"""Labels of one data set under the classes of another."""

from pathlib import Path

import pytest
from data_builders import VocObject, make_voc

from dasnet_lightning.data.sources.class_mapping import map_classes
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.errors import DataError


def source(root: Path, *names: str) -> VOCSource:
    objects = {f"i{number}": [VocObject(name, (6, 6, 15, 15))] for number, name in enumerate(names)}
    make_voc(root, objects, list(objects), {"train": list(objects)})
    return VOCSource(root, "train", class_names=("background", *dict.fromkeys(names)))


def labels(source: VOCSource) -> list[list[int]]:
    return [[item.label for item in record.objects] for record in source.records]


def test_equal_classes_are_not_touched(tmp_path: Path) -> None:
    given = source(tmp_path, "cat", "dog")
    assert map_classes(given, ("background", "cat", "dog")) == (given, "")


def test_classes_are_matched_by_name_in_any_order(tmp_path: Path) -> None:
    given = source(tmp_path, "cat", "dog")
    mapped, text = map_classes(given, ("background", "dog", "owl", "cat"))
    assert (labels(mapped), mapped.class_names) == ([[3], [1]], ("background", "dog", "owl", "cat"))
    assert text == f"{tmp_path}: it does not name 1 classes of the checkpoint (owl)"
    assert mapped.load_masks(mapped.records[0], [0]).valid == (True,)


def test_unknown_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    mapped, text = map_classes(source(tmp_path, "cat", "yak", "yak"), ("background", "cat"))
    assert labels(mapped) == [[1], [], []]
    assert "1 of its classes are not among those of the checkpoint (yak), their 2 labels are left out" in text


def test_names_that_differ_by_case_or_space_are_one_class_if_that_is_clear(tmp_path: Path) -> None:
    mapped, text = map_classes(source(tmp_path / "a", "Traffic Light", "cat"), ("background", "traffic_light", "cat"))
    assert labels(mapped) == [[1], [2]]
    assert "class 'Traffic Light' is taken for 'traffic_light'" in text
    mapped, text = map_classes(source(tmp_path / "b", "CAT", "dog"), ("background", "cat", "Cat", "dog"))
    assert labels(mapped) == [[], [3]]
    assert "(CAT), their 1 labels" in text


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has none of the classes of the checkpoint \(owl\), only cat, dog"):
        map_classes(source(tmp_path, "cat", "dog"), ("background", "owl"))
