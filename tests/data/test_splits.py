"""Mask budgets: all accepted forms, and a drawing that is deterministic, nested, distinct and reports shortages."""

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from dasnet_lightning.data.records import ImageRecord, MaskState, ObjectRecord
from dasnet_lightning.data.splits import (
    Split,
    describe_short,
    make_split,
    mask_labels,
    parse_budget,
    read_split,
    write_split,
)
from dasnet_lightning.errors import BudgetError, DataError

PINNED = ("i5", "i6", "i0", "i1", "i3", "i7", "i2", "i4")
BUDGETS = ("0", "1", "37", "seg100", "seg200", "250", "seg500", "all")


def many(images: int = 1200, classes: int = 20) -> tuple[list[str], list[set[int]]]:
    """Images with one to three of the classes, every seventh without any mask."""
    draw = random.Random(5)
    ids = [f"image {number:05d}" for number in range(images)]
    labels = [set(draw.sample(range(1, classes + 1), draw.randint(1, 3))) for _ in ids]
    return ids, [set() if number % 7 == 0 else owned for number, owned in enumerate(labels)]


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("seg100", "per_class", 5),
        ("Seg200", "per_class", 10),
        ("seg500", "per_class", 25),
        ("seg1.4k", "images", 1464),
        ("SEG10K", "images", 10528),
        ("all", "all", 0),
        ("0", "images", 0),
        ("37", "images", 37),
        (37, "images", 37),
        (" 5/class ", "per_class", 5),
        ("0/class", "per_class", 0),
    ],
)
def test_budgets_are_read(text: str | int, kind: str, amount: int) -> None:
    budget = parse_budget(text)
    assert (budget.kind, budget.amount) == (kind, amount)
    assert budget.name == str(text).strip().lower()


@pytest.mark.parametrize("text", ["", "-1", "1.5", "seg300", "5/classes", "five", "10%", "9" * 20, True, "٣"])
def test_other_words_are_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(BudgetError, match=r"'5/class'.*'all'.*'seg100'.*'seg10k'"):
        parse_budget(text)


def test_the_papers_budgets_have_their_sizes() -> None:
    ids, labels = many()
    for name, images in (("seg100", 100), ("seg200", 200), ("seg500", 500)):
        split = make_split(ids, labels, name, seed=0)
        assert len(split.image_ids) == len(set(split.image_ids)) == images
        assert split.short == {}
        assert min(split.per_class.values()) >= images // 20


@pytest.mark.parametrize("seed", [0, 1, -3])
def test_every_budget_is_a_prefix_of_the_next(seed: int) -> None:
    ids, labels = many()
    drawn = [make_split(ids, labels, budget, seed).image_ids for budget in BUDGETS]
    for smaller, larger in pairwise(drawn):
        assert larger[: len(smaller)] == smaller
        assert len(larger) > len(smaller)
    assert drawn[0] == ()
    assert sorted(drawn[-1]) == [image for image, owned in zip(ids, labels, strict=True) if owned]


def test_the_order_of_the_input_does_not_matter() -> None:
    ids, labels = many(200)
    places = list(range(200))
    random.Random(1).shuffle(places)
    shuffled = make_split([ids[p] for p in places], [sorted(labels[p], reverse=True) for p in places], "3/class", 7)
    assert shuffled == make_split(ids, labels, "3/class", 7)


def test_seeds_differ_and_the_drawing_stays_the_same_for_ever() -> None:
    """The order is pinned: a split written by an older version must be drawn again by a newer one."""
    ids = [f"i{number}" for number in range(8)]
    labels = [{1}, {1, 2}, {2}, {1}, {2}, {1}, {2, 1}, {2}]
    assert make_split(ids, labels, "all", 0).image_ids == PINNED
    assert make_split(ids, labels, "all", 1).image_ids != PINNED


def test_rare_classes_come_first_as_long_as_they_last() -> None:
    ids = [f"i{number:02d}" for number in range(40)]
    labels: list[set[int]] = [{1}] * 38 + [{2}] * 2
    split = make_split(ids, labels, "5/class", seed=0)
    assert split.per_class == {1: 5, 2: 2}
    assert split.short == {2: (5, 2)}
    assert len(split.image_ids) == 7
    assert {"i38", "i39"} <= set(split.image_ids[:4])


def test_classes_without_any_mask_are_short_where_the_number_of_classes_is_known() -> None:
    split = make_split(["a", "b"], [{1}, {3}], "1/class", 0, num_classes=4)
    assert split.short == {2: (1, 0)}
    assert make_split(["a", "b"], [{1}, {3}], "2", 0, num_classes=4).short == {}


def test_an_image_of_two_classes_is_drawn_once() -> None:
    split = make_split(["a", "b"], [{1, 2}, {1, 2}], "2/class", 0)
    assert sorted(split.image_ids) == ["a", "b"]
    assert split.per_class == {1: 2, 2: 2}


def test_budgets_beyond_what_exists_are_refused() -> None:
    with pytest.raises(BudgetError, match="'3' asks for 3 images with masks, 2 are available"):
        make_split(["a", "b", "c"], [{1}, {1}, set()], "3", 0)
    with pytest.raises(BudgetError, match="no image has a mask"):
        make_split(["a"], [set()], "5/class", 0)
    assert make_split(["a"], [set()], "0", 0).image_ids == ()
    assert make_split(["a"], [set()], "all", 0).image_ids == ()


@pytest.mark.parametrize(("ids", "labels"), [(["a", "a"], [{1}, {2}]), (["a"], [{1}, {2}])])
def test_inconsistent_input_is_refused(ids: Sequence[str], labels: Sequence[set[int]]) -> None:
    with pytest.raises(DataError):
        make_split(ids, labels, "all", 0)


def test_labels_count_where_there_is_a_mask_to_learn_from() -> None:
    def item(label: int, mask: MaskState, ignore: bool = False) -> ObjectRecord:
        return ObjectRecord("o", (0, 0, 1, 1), label, mask, ignore)

    objects = (item(1, MaskState.PRESENT), item(2, MaskState.ABSENT), item(3, MaskState.INVALID),
               item(4, MaskState.PRESENT, ignore=True))  # fmt: skip
    ids, labels = mask_labels([ImageRecord("a", Path("a"), (5, 5), objects)])
    assert (ids, labels) == (("a",), (frozenset({1}),))


def test_a_split_is_written_and_read_back(tmp_path: Path) -> None:
    ids, labels = many(100)
    split = make_split([f"größe {item}" for item in ids], labels, "20/class", seed=3)
    assert split.short
    path = tmp_path / "run" / "split.json"
    write_split(split, path)
    write_split(split, path)
    assert read_split(path) == split
    assert [item.name for item in path.parent.iterdir()] == ["split.json"], "no temporary file stays"


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_split(path)
    write_split(make_split(["a"], [{1}], "all", 0), path)
    good = json.loads(path.read_text())
    for content, words in (
        ("{", "cannot be read"),
        ("[]", "not a mask split"),
        (json.dumps({"image_ids": ["a"]}), "not a mask split"),
        (json.dumps({**good, "version": 99}), "version 99"),
        (json.dumps({**good, "image_ids": ["a", "a"]}), "damaged"),
        (json.dumps({**good, "image_ids": "a"}), "damaged"),
        (json.dumps({**good, "image_ids": [1]}), "damaged"),
        (json.dumps({**good, "seed": "0"}), "damaged"),
        (json.dumps({**good, "per_class": [1]}), "damaged"),
        (json.dumps({**good, "short": {"1": 2}}), "damaged"),
        (json.dumps({key: value for key, value in good.items() if key != "candidates"}), "damaged"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=words):
            read_split(path)


def test_short_classes_are_described_up_to_a_limit() -> None:
    short = dict.fromkeys(range(1, 301), (5, 0))
    split = Split((), budget="5/class", seed=0, candidates=0, short=short)
    names = ["background", *(f"part {label}" for label in short)]
    texts = describe_short(split, names)
    assert texts[0] == "class 'part 1' has 0 images with masks, the budget '5/class' asks for 5 of each class"
    assert len(texts) == 21
    assert texts[-1] == "and 280 more such classes"
