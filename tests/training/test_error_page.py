"""The error page and the tables of a run: made from a finished run with and without detected boxes, and from records."""

import json
from pathlib import Path

import pytest

import dasnet_lightning
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.metrics.errors import ERRORS
from dasnet_lightning.training.error_page import MAX_CLASSES, matrix_table
from dasnet_lightning.training.report import write_page
from dasnet_lightning.training.results import RunResult
from tiny_run import TINY, TINY_DETECTOR

SMALL = {"task": "instance", "mask_budgets": ("6",), **TINY}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=12, num_val=6, size=64)


@pytest.fixture(scope="module")
def given(shapes, tmp_path_factory) -> RunResult:
    """A run whose boxes come from elsewhere."""
    out = tmp_path_factory.mktemp("given") / "run"
    return dasnet_lightning.train(str(shapes), out=str(out), detector="boxes", weights="none", **SMALL)


@pytest.fixture(scope="module")
def detecting(shapes, tmp_path_factory) -> RunResult:
    out = tmp_path_factory.mktemp("detecting") / "run"
    return dasnet_lightning.train(str(shapes), out=str(out), score_threshold=0.02, **TINY_DETECTOR, **SMALL)


def test_a_run_without_detector_shows_no_detected_boxes(given):
    page = (given.folder / "report.html").read_text()
    assert "ground-truth boxes" in page
    assert "detected boxes" not in page
    assert "Detection</h" not in page
    errors = (given.folder / "errors.html").read_text()
    assert "Errors, ground-truth boxes" in errors
    assert "detected boxes" not in errors


def test_errors_of_given_boxes_are_mask_errors_only(given):
    summary = json.loads((Path(given.budgets[0].checkpoint).parent / "errors.json").read_text())
    counts = summary["ground_truth_boxes"]["counts"]
    assert counts["missed"] == counts["confused"] == counts["background"] == 0
    assert counts["right"] + counts["mask_error"] == counts["objects"]


def test_a_run_with_a_detector_counts_every_object_once(detecting):
    item = detecting.budgets[0]
    page = (detecting.folder / "errors.html").read_text()
    assert "Errors, detected boxes" in page
    assert page.count("data:image/png;base64") > 0
    summary = json.loads((Path(item.checkpoint).parent / "errors.json").read_text())["detected_boxes"]
    assert item.errors["detected_boxes"] == summary["counts"]
    assert set(ERRORS) <= set(summary["counts"])
    objects = sum(len(record.objects) for record in detecting.val_set.records)
    assert summary["counts"]["objects"] == objects
    table = matrix_table(summary["pairs"], detecting.class_names)
    missed = [row[-1] for row in table.rows[:-1]]
    assert sum(missed) == summary["counts"]["missed"]
    wrong = sum(row[c] for r, row in enumerate(table.rows[:-1]) for c in range(1, len(row) - 1) if c != r + 1)
    assert wrong == summary["counts"]["confused"]


def test_every_table_has_the_floors_first(detecting):
    page = (detecting.folder / "report.html").read_text()
    assert page.count("none: filled rectangles") >= 2
    assert page.count("none: filled ellipses") >= 2


def test_a_deleted_error_file_leaves_the_report_and_its_counts(detecting):
    path = Path(detecting.budgets[0].checkpoint).parent / "errors.json"
    content = path.read_text()
    path.unlink()
    try:
        write_page(detecting, "again", [])
        assert "Errors, detected boxes" in (detecting.folder / "report.html").read_text()
    finally:
        path.write_text(content)


def test_the_matrix_of_many_classes_shows_those_with_the_most_errors():
    names = ("background", *(f"class {number}" for number in range(1, 41)))
    pairs = [[label, label, 5] for label in range(1, 41)] + [[label, 1, label] for label in range(2, 41)]
    table = matrix_table(pairs, names)
    assert len(table.rows) == MAX_CLASSES + 1
    assert table.rows[0][0] == "class 1"  # takes part in every error
    assert [row[0] for row in table.rows[1:-1]] == [f"class {label}" for label in range(41 - MAX_CLASSES + 1, 41)]
    assert f"The {MAX_CLASSES} classes with the most errors" in table.note


def test_the_matrix_holds_missed_objects_and_detections_of_nothing():
    table = matrix_table([[1, 1, 7], [1, 0, 2], [0, 2, 3], [2, 1, 4]], ("background", "cat", "dog"))
    assert list(table.header) == ["", "cat", "dog", "missed"]
    assert [list(row) for row in table.rows] == [["cat", 7, 0, 2], ["dog", 4, 0, 0], ["background", 0, 3, None]]
