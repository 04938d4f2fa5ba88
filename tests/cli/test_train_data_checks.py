"""What `dasnet train` checks before stage one: labels that cannot be trained, masks that cannot be used, changed data."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic.dataset import write_synthetic

TINY = [
    *("--detector", "ssd_tiny", "--image-size", "64", "--detector-batch-size", "4", "--batch-size", "4"),
    *("--detector-steps", "2", "--steps", "2", "--num-workers", "0", "--accelerator", "cpu", "--precision", "32-true"),
]


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_synthetic(tmp_path / "shapes", num_train=8, num_val=3, size=64)


def edit(root: Path, split: str, change: object) -> int:
    """Change every annotation of a split; return how many there are."""
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    for number, row in enumerate(content["annotations"]):
        change(number, row)  # type: ignore[operator]
    file.write_text(json.dumps(content))
    return len(content["annotations"])


def table_of(text: str, title: str) -> dict[str, list[str]]:
    """Rows of a printed table by their first cell."""
    lines = text.split(f"{title}\n", 1)[1].split("\n\n")[0].splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_labels_that_are_all_crowd_stop_before_stage_one(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    total = sum(edit(shapes, split, lambda _, row: row.update(iscrowd=1)) for split in ("train", "val"))
    out = tmp_path / "run"
    assert main(["train", str(shapes), "--out", str(out), *TINY]) == 2
    text = capsys.readouterr().err
    assert f"{total} of {total} labels are crowd" in text
    assert "--crowd object" in text
    assert not out.exists()
    assert main(["train", str(shapes), "--out", str(out), "--crowd", "object", *TINY]) == 0
    accounting = json.loads((out / "results.json").read_text())["accounting"]["all"]["all"]
    assert accounting["ignored"] == 0
    assert accounting["trained"] + accounting["evaluated"] == total


def test_labels_without_masks_stop_before_stage_one(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    total = sum(edit(shapes, split, lambda _, row: row.update(segmentation=[])) for split in ("train", "val"))
    assert main(["train", str(shapes), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert f"0 of {total} labels have a mask" in capsys.readouterr().err
    assert main(["data", str(shapes)]) == 0
    assert "training would stop: 0 of" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def outside(number: int, row: dict[str, Any], every: int = 1) -> None:
    """Move every so many masks into a corner of the image that the box does not touch."""
    left, top, width, height = row["bbox"]
    corners = [(x, y) for x in (0, 61) for y in (0, 61)]
    x, y = next((x, y) for x, y in corners if not (left - 6 < x < left + width + 6 and top - 6 < y < top + height + 6))
    if number % every == 0:
        row["segmentation"] = [[x, y, x + 2, y, x + 2, y + 2, x, y + 2]]


def test_masks_that_cannot_be_decoded_stop_before_stage_one(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = edit(shapes, "train", outside)
    assert main(["train", str(shapes), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert (
        f"none of the {number} training masks can be used, the first: image '1': object 1: " in capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "detector").exists()


def test_audit_first_lines_table_and_csv_agree(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some masks are missing and some cannot be decoded; the validation has none."""
    edit(shapes, "train", lambda number, row: outside(number, row, every=5))
    edit(shapes, "train", lambda number, row: row.update(segmentation=[]) if number % 4 == 0 else None)
    edit(shapes, "val", lambda _, row: row.pop("segmentation"))
    assert main(["data", str(shapes), "--fix", "drop", "--json", str(tmp_path / "data.json")]) == 0
    audit = table_of(capsys.readouterr().out, "Splits")
    out = tmp_path / "run"
    assert main(["train", str(shapes), "--out", str(out), *TINY]) == 0
    captured = capsys.readouterr()
    assert table_of(captured.out, "Splits") == audit
    with (out / "masks-all" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    uses = Counter(row["mask"].split(":")[0] for row in rows)
    assert [len(rows), uses["trained"], uses["absent"], uses["invalid"]] == [int(text) for text in audit["all"][2:6]]
    assert uses["invalid"] > 0
    results = json.loads((out / "results.json").read_text())
    assert results["budgets"][0]["mask_objects"] == uses["trained"]
    assert results["accounting"]["all"]["all"]["invalid"] == uses["invalid"]
    splits = json.loads((tmp_path / "data.json").read_text())["splits"]
    hidden = {"not opened", "by a model"}  # columns that are shown if they are not 0
    assert [str(value) for key, value in splits["all"].items() if key not in hidden] == audit["all"]
    assert f"{uses['invalid']} of " in captured.err
    assert "cannot be used, only their boxes are; the first: image" in captured.err
    assert "none of the 3 validation images has a mask" in captured.err
    assert "-1.000" not in captured.out
    page = (out / "report.html").read_text()
    assert "-1.000" not in page
    assert "none of the 3 validation images has a mask that can be used" in page


def test_masks_of_the_wrong_kind_stop_before_stage_one(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "voc"
    source = shared / "data" / "voc12_animals" / "VOCdevkit" / "VOC2012"
    ids = [path.stem for path in sorted((source / "SegmentationObject").iterdir())[:6]]
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg"), ("SegmentationObject", "png")):
        (root / folder).mkdir(parents=True)
        for name in ids:
            shutil.copy(source / folder / f"{name}.{suffix}", root / folder)
    for path in (root / "SegmentationObject").iterdir():
        Image.open(path).convert("LA").save(path)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in (("train", ids[:4]), ("val", ids[4:])):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
    assert main(["train", str(root), "--out", str(tmp_path / "run"), *TINY]) == 2
    text = capsys.readouterr().err
    assert "training masks can be used" in text
    assert "has mode LA" in text
    assert not (tmp_path / "run" / "detector").exists()


def swap_classes(root: Path, split: str) -> None:
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    first, second = content["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    file.write_text(json.dumps(content))


def test_a_run_knows_its_data(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["train", str(shapes), "--out", str(out), *TINY]
    assert main(command) == 0
    before = json.loads((out / "results.json").read_text())
    assert before["notes"] == []
    capsys.readouterr()

    edit(shapes, "train", lambda number, row: row.update(segmentation=[]) if number < 2 else None)
    edit(shapes, "val", lambda number, row: row.update(bbox=[1, 1, 50, 50]) if number == 0 else None)
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(command) == 2
    text = capsys.readouterr().err
    assert "the data set changed since this run began: " in text
    assert "images with other masks, 2 masks fewer" in text
    assert "1 images with other boxes, classes or sizes" in text
    assert "choose another --out, or continue this run on the new data with --accept-changes" in text
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files

    measured = {stage: (out / stage / "metrics.json").stat().st_mtime_ns for stage in ("detector", "masks-all")}
    assert main([*command, "--accept-changes"]) == 0
    text = capsys.readouterr().err
    assert "detector, masks-all began training before the data set changed" in text
    after = json.loads((out / "results.json").read_text())
    assert "detector, masks-all began training before the data set changed" in after["notes"][0]
    for stage in ("detector", "masks-all"):
        assert (out / stage / "metrics.json").stat().st_mtime_ns > measured[stage], "measured again on the new data"
    assert "began training before the data set changed" in (out / "report.html").read_text()
    assert main(command) == 0, "the new data set is the run's own now"
    assert "masks-all began training before the data set changed" in capsys.readouterr().err

    shutil.rmtree(out / "masks-all")
    assert main(command) == 0
    text = capsys.readouterr().err
    assert "run: detector began training before the data set changed" in text
    assert "stage two: all masks: done before" not in text

    for split in ("train", "val"):
        swap_classes(shapes, split)
    for extra in ([], ["--accept-changes"]):
        assert main([*command, *extra]) == 2
        assert "its weights were trained for the former classes, choose another --out" in capsys.readouterr().err


def test_a_run_without_a_fingerprint_keeps_working(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", str(shapes), "--out", str(out), *TINY]
    assert main(command) == 0
    record = json.loads((out / "run.json").read_text())
    old = {key: value for key, value in record.items() if key not in ("fingerprint", "accepted_changes", "crowd")}
    (out / "run.json").write_text(json.dumps({**old, "provenance": [1]}))
    assert main(command) == 0
    assert "done before" in capsys.readouterr().err
    again = json.loads((out / "run.json").read_text())
    assert again["fingerprint"] == record["fingerprint"]
    assert again["provenance"][0] == 1, "earlier starts stay"
    assert main([*command, "--crowd", "object"]) == 2
    assert "crowd was 'ignore' and is 'object'" in capsys.readouterr().err
