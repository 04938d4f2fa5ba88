"""YAML list of parts: all options are read, and errors name the file, the part and the key."""

from pathlib import Path

import pytest

from dasnet_lightning.data.sources.union_yaml import read_union
from dasnet_lightning.data.sources.voc_lists import LISTS
from dasnet_lightning.data.splits import NAMED_BUDGETS
from dasnet_lightning.errors import DataError

SHIPPED = Path(__file__).parents[3] / "experiments" / "data"


def write(folder: Path, text: str) -> Path:
    file = folder / "set.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_parts_and_options_are_read(tmp_path: Path) -> None:
    spec = read_union(
        write(
            tmp_path,
            """
            root: ../data
            train:
              - {root: VOC, split: trainval, list: Segmentation, masks: false, expect: 7}
              - {root: /coco, split: train2017, classes: voc, empty: keep}
            val: [{root: VOC, split: val}]
            val_images_in_train: keep
            expect: {train: 9}
            """,
        )
    )
    first, second = spec.train
    assert first.root == tmp_path / "../data" / "VOC"
    assert (first.split, first.lists, first.masks, first.expect) == ("trainval", ("Segmentation",), False, 7)
    assert (first.voc_classes, first.keep_empty) == (False, False)
    assert second.root == Path("/coco")
    assert (second.lists, second.masks, second.voc_classes, second.keep_empty) == (LISTS, True, True, True)
    assert spec.val[0].location == f"{tmp_path / 'set.yaml'}: val, part 1"
    assert spec.keep_val_images
    assert dict(spec.expect) == {"train": 9}


FAULTS = [
    ("train: [", "cannot be read as YAML"),
    ("{" * 5000, "nested too deeply"),
    ("a: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ("\0", "cannot be read as YAML"),
    ("", "not a mapping, expected a list of parts"),
    ("- {root: a, split: b}", "not a mapping"),
    ("trainer: {}", "a configuration for 'dasnet fit --config'"),
    ("trian: []", "unknown key 'trian', did you mean 'train'? Known keys: root, train, val"),
    ("1: []", "unknown key '1', known keys: root"),
    ("train: images", "'train' is 'images', expected a list"),
    ("root: 5", "'root' is 5, expected text"),
    ("val: []", "'train' lists no part, expected at least one"),
    ("train: [a]", "train, part 1: is 'a', expected a mapping"),
    ("train: [{root: a}, {split: a}]", "train, part 2: has no 'root'"),
    ("train: [{root: a, lst: Main}]", "train, part 1: unknown key 'lst', did you mean 'list'?"),
    ("train: [{root: a}]\nval: [{root: a, list: Layout}]", "val, part 1: 'list' is 'Layout', expected Main or Segmen"),
    ("train: [{root: a, masks: 1}]", "'masks' is 1, expected true or false"),
    ("train: [{root: a, split: 2012}]", "'split' is 2012, expected text"),
    ("train: [{root: a, classes: [cat]}]", "'classes' is ['cat'], expected voc"),
    ("train: [{root: a, empty: keep}]", "'empty' is only for 'classes: voc'"),
    ("train: [{root: a, expect: -1}]", "'expect' is -1, expected an integer from 0"),
    ("train: [{root: a, expect: true}]", "'expect' is True, expected an integer from 0"),
    ("train: [{root: a}]\nexpect: {trian: 5}", "expect: unknown key 'trian', did you mean 'train'?"),
    ("train: [{root: a}]\nval_images_in_train: maybe", "'val_images_in_train' is 'maybe', expected exclude or keep"),
    ("train: [{root: a}]\ntrain: [{root: b}]", "the mapping at line 1 repeats the key 'train'"),
    ("train: [{root: a, root: b}]", "repeats the key 'root'"),
]


@pytest.mark.parametrize(("text", "words"), FAULTS)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_union(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert words in message
    assert "\n" not in message


def test_a_large_or_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="larger than 1000000 bytes"):
        read_union(write(tmp_path, "#" * 1_000_001))
    with pytest.raises(DataError, match="cannot be read as YAML"):
        read_union(tmp_path / "absent.yaml")


def test_the_shipped_files_hold_the_counts_of_the_paper() -> None:
    specs = {path.stem: read_union(path) for path in sorted(SHIPPED.glob("*.yaml"))}
    assert sorted(specs) == ["box145k", "box16.5k", "seg1.4k", "seg10k"]
    assert {name: spec.expect.get("train") for name, spec in specs.items()} == {
        "box16.5k": 16_551, "box145k": 144_790, "seg1.4k": int(NAMED_BUDGETS["seg1.4k"]), "seg10k": None
    }  # fmt: skip
    for name in ("box16.5k", "box145k", "seg1.4k"):
        assert sum(part.expect or 0 for part in specs[name].train) == specs[name].expect["train"]
    assert all(not part.masks for name in ("box16.5k", "box145k") for part in specs[name].train)
    assert specs["seg10k"].train[0].expect == 8_498 + 2_857
    assert [name for name, spec in specs.items() if spec.keep_val_images] == ["box145k"]
    assert all(part.root.is_relative_to(SHIPPED) for spec in specs.values() for part in (*spec.train, *spec.val))
