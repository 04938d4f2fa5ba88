"""Every place that counts labels says the same: `dasnet data`, its CSV and JSON, the page, and the first lines of a training.

The data sets are inputs that people reported, which scripts beside the project make; without them, the test is skipped.
"""

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dasnet_lightning.cli.main import main
from dasnet_lightning.data.label_audit import audit_dataset
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.errors import DasnetError
from dasnet_lightning.training.data_check import check_masks

CASES = ("01", "03", "05", "06", "07", "08", "10", "11", "12", "14", "15", "16", "17", "18", "19", "21")
PHOTOGRAPHS = ("voc07_subset", "voc12_animals")
COUNTED = ("boxes", "masks", "no mask", "invalid mask", "ignored", "refused")


def make_case(shared: Path, number: str, out: Path) -> list[Path]:
    """Run a case's script with a program that does nothing in place of `dasnet`; return the folders of data it made."""
    (script,) = shared.glob(f"cases/{number}-*/run.sh")
    environment = os.environ | {"CASES_OUT": str(out), "PYTHON": sys.executable, "DASNET": "true"}
    subprocess.run(["bash", str(script)], env=environment, capture_output=True, timeout=300, check=False)
    return sorted(path for path in (out / script.parent.name).iterdir() if path.is_dir())


def report_of(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON document of `dasnet data`, beside its CSV file and page in `folder`."""
    folder.mkdir(parents=True)
    options = ["--json", "--csv", str(folder / "labels.csv"), "--page", str(folder / "page.html")]
    main(["data", str(root), *options, "--fix", "drop", "--allow-missing"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def check_csv(report: dict[str, Any], file: Path) -> None:
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    by_split = Counter(row["split"] for row in rows)
    assert {name: by_split[name] for name in report["images"]} == {
        name: counts["boxes"] for name, counts in report["splits"].items() if name != "all"
    }
    everything = report["splits"]["all"]
    assert len(rows) == everything["boxes"]
    assert sum(row["box"].startswith("refused") for row in rows) == everything["refused"]
    assert sum(row["box"].startswith("ignored") for row in rows) == everything["ignored"]
    assert sum(row["mask"] == "absent" for row in rows) == everything["no mask"]
    assert sum(row["mask"].startswith("invalid") for row in rows) == everything["invalid mask"]
    by_class = Counter(row["class_name"] for row in rows)
    assert {name: by_class[name] for name in report["classes"] if name != "all"} == {
        name: counts["boxes"] for name, counts in report["classes"].items() if name != "all"
    }


def check_page(report: dict[str, Any], file: Path) -> None:
    text = re.sub(r"\s+", " ", file.read_text(encoding="utf-8"))
    for name, counts in report["splits"].items():
        cells = [name, counts["images"], counts["with masks"], *(counts[key] for key in COUNTED)]
        row = "".join(rf"<td[^>]*>{value if isinstance(value, str) else f'{value:,}'}</td> ?" for value in cells)
        assert re.search(row, text), (name, cells)


def check_training(report: dict[str, Any], data: DataSet) -> None:
    try:
        checked = check_masks(data, [("all", 0)])
    except DasnetError:
        assert any("training would stop" in note for note in report["notes"])
        return
    for name, counts in checked.counts.splits.items():
        shown = report["splits"][name]
        assert {key: counts[key] for key in ("images", "boxes", "no mask", "ignored", "refused")} == {
            key: shown[key] for key in ("images", "boxes", "no mask", "ignored", "refused")
        }, name
        # a test split and images with crowd masks alone are not opened
        states = ("masks", "invalid mask", "not opened")
        assert sum(counts[key] for key in states) == sum(shown[key] for key in states), name
        if not counts["not opened"]:
            assert [counts[key] for key in states] == [shown[key] for key in states], name
    assert len(audit_dataset(checked.dataset)) == report["splits"]["all"]["boxes"]


def check_all(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """Compare all counts of a data set; return whether it can be opened."""
    try:
        data = open_dataset(root, allow_missing=True, fix="drop")
    except DasnetError:
        return False
    report = report_of(root, folder, capsys)
    for counts in report["splits"].values():
        parts = (*COUNTED[1:4], "refused", "not opened")
        ignored_masks = counts["boxes"] - sum(counts[key] for key in parts)
        assert ignored_masks == 0, counts  # every label is counted once
    check_csv(report, folder / "labels.csv")
    check_page(report, folder / "page.html")
    check_training(report, data)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", CASES)
def test_all_counts_agree_on_reported_inputs(
    tmp_path: Path, shared: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = make_case(shared, number, tmp_path / "cases")
    opened = [check_all(folder, tmp_path / "out" / folder.name, capsys) for folder in folders]
    assert folders
    assert any(opened) or number == "21", folders  # 21: boxes in other conventions, all refused


@pytest.mark.slow
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_all_counts_agree_on_photographs(
    tmp_path: Path, shared: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_all(shared / "data" / name, tmp_path / "out", capsys)
