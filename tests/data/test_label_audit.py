"""Label audit: one row per annotation with the use of its box and its mask."""

import csv
from pathlib import Path

import pytest
from data_builders import (
    VocObject,
    annotation,
    coco_content,
    filled_indices,
    make_coco,
    make_voc,
    square_polygon,
    write_index_picture,
)

from dasnet_lightning.data.label_audit import COLUMNS, LabelUse, audit_labels, summarize, write_label_audit
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.errors import ConfigError


def mixed_coco(root: Path) -> COCOSource:
    """25 images, 100 annotations: 80 without any segmentation, and among the others every kind of fault."""
    rows = []
    for number in range(1, 101):
        extra = {"segmentation": square_polygon()} if number % 5 == 0 else {}
        rows.append(annotation(number, image=1 + number % 25, category=1 + number % 2, **extra))
    rows[4]["segmentation"] = [[1, 2, 3, 4]]  # invalid
    rows[9]["segmentation"] = square_polygon(26, 16)  # outside its box
    rows[14]["iscrowd"] = 1
    rows[0]["bbox"] = [5, 5, 0, 5]
    rows[1]["bbox"] = [90, 5, 5, 5]
    rows[2]["bbox"] = [35, 5, 20, 5]  # clipped
    file = make_coco(root, coco_content(rows, num_images=25))
    (root / "train" / "a25.jpg").unlink()  # holds the annotations 24, 49, 74 and 99
    return COCOSource(file, root / "train", allow_missing=True, fix="drop")


def test_there_is_one_row_for_every_annotation(tmp_path: Path) -> None:
    rows = audit_labels(mixed_coco(tmp_path), {"6"}, "train")
    assert sorted(row.object_id for row in rows) == sorted(str(number) for number in range(1, 101))
    assert all(row.class_name in ("cat", "dog") and row.split == "train" for row in rows)


def test_rows_say_what_became_of_box_and_mask(tmp_path: Path) -> None:
    use = {row.object_id: row for row in audit_labels(mixed_coco(tmp_path), {"6", "11"}, "train")}
    assert use["1"].box == "refused: box [5, 5, 0, 5] has zero width"
    assert (use["1"].image_id, use["1"].mask, use["1"].class_name) == ("2", "refused", "dog")
    assert use["2"].box.startswith("refused: box [90, 5, 5, 5] lies outside")
    assert (use["3"].box, use["3"].mask) == ("trained", "absent")
    assert use["5"].box == "trained"
    assert use["5"].mask.startswith("invalid: polygon 1 of 1 has fewer than three")
    assert (use["10"].box, use["10"].mask) == ("trained", "trained")
    assert use["15"].box == use["15"].mask == "ignored: crowd or difficult"
    assert (use["20"].box, use["20"].mask) == ("trained", "outside the budget")
    assert use["24"].box == "refused: its image is missing"
    assert (use["30"].box, use["30"].mask) == ("trained", "trained")


def test_opening_every_mask_finds_more(tmp_path: Path) -> None:
    source = mixed_coco(tmp_path)
    seen: list[tuple[int, int]] = []
    rows = audit_labels(
        source, {"6"}, "train", verify_masks=True, progress=lambda done, total: seen.append((done, total))
    )
    use = {row.object_id: row for row in rows}
    assert use["10"].mask.startswith("invalid: only")
    assert use["10"].box == "trained"
    assert use["20"].mask == "outside the budget"
    assert len(rows) == 100
    assert seen == [(done, 24) for done in range(1, 25)]


def test_no_mask_is_opened_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = mixed_coco(tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("a mask was opened")

    monkeypatch.setattr(COCOSource, "load_masks", refuse)
    assert len(audit_labels(source, None, "train")) == 100
    with pytest.raises(AssertionError, match="was opened"):
        audit_labels(source, None, "train", verify_masks=True)


def test_budgets_do_not_touch_the_validation(tmp_path: Path) -> None:
    use = {row.object_id: row for row in audit_labels(mixed_coco(tmp_path), set(), "val")}
    assert (use["20"].box, use["20"].mask) == ("evaluated", "evaluated")
    assert use["3"].mask == "absent"
    with pytest.raises(ConfigError, match="'train' or 'val'"):
        audit_labels(mixed_coco(tmp_path / "again"), None, "test")  # type: ignore[arg-type]


def test_no_budget_means_all_masks(tmp_path: Path) -> None:
    table = summarize(audit_labels(mixed_coco(tmp_path), None, "train"))
    assert table["all"]["outside budget"] == 0
    # 20 drawn, one invalid, one crowd
    assert table["all"]["trained"] == 18


def test_the_summary_adds_up(tmp_path: Path) -> None:
    table = summarize(audit_labels(mixed_coco(tmp_path), {"6", "21"}, "train"))
    total = table["all"]
    assert list(table) == ["cat", "dog", "all"]
    assert tuple(total) == COLUMNS
    assert all(total[column] == table["cat"][column] + table["dog"][column] for column in COLUMNS)
    assert total["boxes"] == 100
    assert total["refused"] == 6
    assert total["absent"] == 80 - 6
    assert (total["masks"], total["invalid"], total["ignored"]) == (19, 1, 1)
    assert total["trained"] + total["outside budget"] == 18
    assert total["masks"] + total["invalid"] + total["absent"] + total["refused"] == 100


def test_rows_are_written_as_csv(tmp_path: Path) -> None:
    rows = [
        *audit_labels(mixed_coco(tmp_path), None, "train"),
        LabelUse('a,"b"', "1", "größe", "val", "trained", "absent"),
    ]
    write_label_audit(rows, tmp_path / "out" / "labels.csv")
    with (tmp_path / "out" / "labels.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["image_id", "object_id", "class_name", "split", "box", "mask"]
    assert len(table) == 102
    assert table[-1] == ['a,"b"', "1", "größe", "val", "trained", "absent"]


def test_voc_objects_are_accounted_for_too(tmp_path: Path) -> None:
    objects = [VocObject("cat", (6, 6, 15, 15)), VocObject("dog", (9, 9, 3, 3)), VocObject("dog", (21, 11, 35, 25), 1)]
    root = make_voc(tmp_path, {"a": objects, "b": objects, "c": objects[:1]})
    for name, boxes in (("a", [objects[0].box, (1, 1, 3, 3), objects[2].box]), ("c", [(21, 11, 35, 25)])):
        write_index_picture(root / "SegmentationObject" / f"{name}.png", filled_indices(boxes))
    (root / "JPEGImages" / "b.jpg").unlink()
    source = VOCSource(root, "train", allow_missing=True, fix="drop")
    rows = audit_labels(source, {"a"}, "train", verify_masks=True)
    use = {row.object_id: row for row in rows}
    assert len(rows) == len(use) == 7
    assert (use["a/1"].box, use["a/1"].mask) == ("trained", "trained")
    assert (use["a/2"].image_id, use["a/2"].mask) == ("a", "refused")
    assert use["a/3"].box == use["a/3"].mask == "ignored: crowd or difficult"
    assert use["b/1"].box == "refused: its image is missing"
    assert use["c/1"].mask.startswith("invalid: only 0 %")
