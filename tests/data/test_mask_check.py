"""A mask counts only when it was decoded: faulty masks are marked, budgets drawn again, and no other mask is opened."""

import csv
import json
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pytest
from data_builders import VocObject, annotation, coco_content, make_coco, make_voc, square_polygon
from PIL import Image

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.label_audit import audit_dataset, write_label_audit
from dasnet_lightning.data.label_counts import count_labels
from dasnet_lightning.data.mask_check import CheckedMasks, check_all_masks, check_drawn_masks
from dasnet_lightning.data.obstacles import training_obstacle, validation_obstacle
from dasnet_lightning.data.records import MaskState, Source
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.data.splits import make_split, mask_labels
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.report import format_text_table
from dasnet_lightning.training.config import RunConfig
from dasnet_lightning.training.data_check import announce_data, check_masks
from dasnet_lightning.training.data_tables import classes_table, splits_table
from dasnet_lightning.training.dataset_page import RunPage

OUTSIDE = square_polygon(26, 16)  # no pixel inside the box of `annotation`


def write_set(
    root: Path, bad: Collection[int] = (), bad_val: Collection[int] = (), num: int = 12, **extra: object
) -> Path:
    """A training and a validation split with one mask in each image; the masks in `bad` lie outside their boxes."""
    for split, faulty in (("train", bad), ("val", bad_val)):
        rows = [
            annotation(n, image=n, segmentation=OUTSIDE if n in faulty else square_polygon(), **extra)
            for n in range(1, num + 1)
        ]
        make_coco(root, coco_content(rows, num_images=num), f"{split}.json", split)
    return root


def draw(number: int) -> object:
    def ids(source: Source) -> tuple[str, ...]:
        return make_split(*mask_labels(source.records), number, 0, len(source.class_names)).image_ids

    return ids


def states(data: DataSet) -> dict[str, MaskState]:
    return {record.image_id: record.objects[0].mask for record in data.train.records}


def test_faulty_masks_are_marked_with_their_reason(tmp_path: Path) -> None:
    data = open_dataset(write_set(tmp_path, {2, 5}, {7}))
    checked = check_all_masks(data)
    corrected = checked.apply(data)
    assert [key for key, state in states(corrected).items() if state is MaskState.INVALID] == ["2", "5"]
    assert "lies inside its box" in corrected.train.records[1].objects[0].reason
    assert [name for name, _ in checked.faults] == ["image '2': object 2", "image '5': object 5", "image '7': object 7"]
    assert corrected.train.load_masks(corrected.train.records[0], [0]).valid == (True,)
    assert set(states(data).values()) == {MaskState.PRESENT}, "the data set itself is not changed"


def test_a_budget_is_drawn_again_without_faulty_masks(tmp_path: Path) -> None:
    data = open_dataset(write_set(tmp_path))
    first = draw(4)(data.train)  # type: ignore[operator]
    broken = {int(image_id) for image_id in first[:3]}
    data = open_dataset(write_set(tmp_path, broken))
    checked = check_drawn_masks(data, draw(4))  # type: ignore[arg-type]
    drawn = draw(4)(checked.apply(data).train)  # type: ignore[operator]
    assert len(drawn) == 4
    assert not broken & set(map(int, drawn))
    assert set(drawn) <= checked.train
    assert first[3] in drawn


def test_only_masks_inside_the_budget_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, opened = open_dataset(write_set(tmp_path)), []
    load = COCOSource.load_masks

    def watch(self: COCOSource, record: object, indices: object) -> object:
        opened.append((self.annotation_file.stem, record.image_id))  # type: ignore[attr-defined]
        return load(self, record, indices)  # type: ignore[arg-type]

    monkeypatch.setattr(COCOSource, "load_masks", watch)
    seen: list[tuple[int, int]] = []
    checked = check_drawn_masks(data, draw(3), lambda done, total: seen.append((done, total)))  # type: ignore[arg-type]
    assert sorted(name for split, name in opened if split == "train") == sorted(checked.train)
    assert len(checked.train) == 3
    assert len(opened) == 3 + 12
    assert seen[-1] == (3, 3)
    counts = count_labels(data, audit_dataset(data, checked.train), checked)
    assert (counts.splits["train"]["masks"], counts.splits["train"]["not opened"]) == (3, 9)
    assert counts.splits["train"]["with masks"] == 3


def test_counts_add_up_for_every_way_to_check(tmp_path: Path) -> None:
    data = open_dataset(write_set(tmp_path, {2, 5}, {7}))
    for checked in (CheckedMasks(), check_all_masks(data), check_drawn_masks(data, draw(3))):  # type: ignore[arg-type]
        corrected = checked.apply(data)
        counts = count_labels(corrected, audit_dataset(corrected), checked)
        for row in (*counts.splits.values(), *counts.classes.values()):
            parts = ("masks", "not opened", "no mask", "invalid mask", "refused")
            assert row["boxes"] == sum(row[key] for key in parts)
        assert counts.splits["all"]["boxes"] == sum(row["boxes"] for row in counts.classes.values()) == 24
    assert counts.classes["dog"]["images"] == 0


def test_what_stops_training_is_said_with_counts(tmp_path: Path) -> None:
    crowd = write_set(tmp_path / "crowd", num=8, iscrowd=1)
    data = open_dataset(crowd)
    assert training_obstacle(data).startswith("16 of 16 labels are crowd")
    assert "neither crowd nor difficult" in validation_obstacle(data.val)
    data = open_dataset(crowd, crowd="object")
    assert training_obstacle(data) == validation_obstacle(data.val) == ""
    assert not any(item.ignore for record in data.val.records for item in record.objects)
    module = MixedSupervisionDataModule(str(crowd), image_size=32, crowd="object")
    assert not module.train_set()[(0, 0)].target.ignore.any()
    with pytest.raises(ConfigError, match="crowd is 'objects', expected one of ignore, object"):
        open_dataset(crowd, crowd="objects")  # type: ignore[arg-type]

    rows = [annotation(n, image=n) for n in range(1, 13)]
    make_coco(tmp_path / "boxes", coco_content(rows, num_images=12), "all.json", "images")
    data = open_dataset(tmp_path / "boxes")
    assert training_obstacle(data).startswith("0 of 12 labels have a mask")

    data = open_dataset(write_set(tmp_path / "bad", range(1, 13)))
    assert training_obstacle(data) == ""
    text = training_obstacle(check_all_masks(data).apply(data))
    assert text.startswith("none of the 12 training masks can be used, the first: image '1': object 1: only 0 %")


def test_masks_of_a_wrong_kind_are_counted_as_invalid(tmp_path: Path) -> None:
    """CVAT writes SegmentationObject in colors."""
    cat = VocObject("cat", (6, 6, 15, 15))
    root = make_voc(tmp_path, {key: [cat] for key in "abcd"}, "abcd", {"train": "abc", "val": "d"})
    for path in (root / "SegmentationObject").iterdir():
        Image.open(path).convert("RGB").save(path)
    data = open_dataset(root)
    checked = check_all_masks(data)
    counts = count_labels(data, audit_dataset(checked.apply(data)), checked)
    assert counts.splits["all"]["invalid mask"] == 4
    val_set = MixedSupervisionDataModule(str(root), image_size=32).val_set()
    assert val_set[(0, 0)].target.truth is None, (
        "nothing is measured on boxes that are void and a background around them"
    )
    assert counts.splits["all"]["masks"] == counts.splits["all"]["with masks"] == 0


@pytest.mark.parametrize("name", ["voc07_subset", "voc12_animals"])
def test_the_photographs_are_counted_alike_by_audit_and_training(
    shared: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`dasnet data`, the first lines of a training, labels.csv and the page hold the same numbers."""
    root = shared / "data" / name
    assert main(["data", str(root), "--json", str(tmp_path / "data.json")]) == 0
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "data.json").read_text())
    config = RunConfig(str(root), str(tmp_path / "run"))
    dataset = open_dataset(root)
    page = RunPage(config, dataset, (64, 64), ("all", 0))
    data = check_masks(dataset, [("all", 0)])
    page.write(data)
    announce_data(data, page.problems)
    assert data.counts.splits == document["splits"]
    splits = format_text_table(splits_table(data.counts))
    assert splits in printed
    assert splits in capsys.readouterr().out
    cells = [value for row in splits_table(data.counts).rows for value in row[1:]]
    html = page.path.read_text().split("<h3>Splits</h3>")[1].split("</table>")[0]
    assert re.findall(r"<td class=.number.>([^<]*)</td>", html) == [f"{value:,}" for value in cells]
    write_label_audit(audit_dataset(data.dataset), tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open() as file:
        uses = Counter(row["mask"] for row in csv.DictReader(file))
    total = data.counts.splits["all"]
    assert uses["trained"] + uses["evaluated"] + uses["ignored: crowd or difficult"] == total["masks"]
    assert uses["absent"] == total["no mask"]
    assert sum(uses.values()) == total["boxes"]


def test_a_class_may_be_called_all(tmp_path: Path) -> None:
    rows = [annotation(n, image=n, category=1 + n % 2, segmentation=square_polygon()) for n in range(1, 13)]
    make_coco(tmp_path, coco_content(rows, 12, ((1, "all"), (2, "dog"))), "all.json", "images")
    data = open_dataset(tmp_path)
    counts = count_labels(data, audit_dataset(data), check_all_masks(data))
    assert [(row[0], row[2]) for row in classes_table(counts).rows] == [("all (class)", 6), ("dog", 6), ("all", 12)]
