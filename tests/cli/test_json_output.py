"""`--json` prints one JSON document on stdout and everything else on stderr."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dasnet_lightning.cli.json_output import plain
from dasnet_lightning.cli.main import main
from dasnet_lightning.data.synthetic.dataset import write_synthetic

TINY = [
    *("--detector", "ssd_tiny", "--image-size", "64", "--detector-batch-size", "4", "--batch-size", "4"),
    *("--detector-steps", "2", "--steps", "2", "--num-workers", "0", "--accelerator", "cpu", "--precision", "32-true"),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=3, size=64)


def read_document(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    captured = capsys.readouterr()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(captured.out, parse_constant=refuse), captured.err


def test_data_prints_its_counts(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "data.json"
    assert main(["data", str(shapes), "--json", str(file)]) == 0
    assert "this data set can be used" in capsys.readouterr().out
    for arguments in (["--json"], ["--json", "-"]):
        assert main(["data", str(shapes), *arguments]) == 0
        document, messages = read_document(capsys)
        assert document == json.loads(file.read_text())
        assert "this data set can be used" in messages
    assert document["usable"] is True
    assert document["splits"]["all"]["images"] == 11


def test_an_error_is_a_document_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["data"], ["train"]):
        assert main([*command, str(tmp_path / "nowhere"), "--json"]) == 2
        document, messages = read_document(capsys)
        assert "does not exist" in document["error"]
        assert document["error"] in messages


def test_train_segment_and_both_pages(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", str(shapes), "--out", str(out), "--json", "--mask-budget", "5", *TINY]) == 0
    document, messages = read_document(capsys)
    assert document["budgets"][0]["mask_images"] == 5
    assert document["report"] == str(out / "report.html")
    assert "stage one: boxes: step 2/2" in messages
    assert "Splits" in messages

    page = (out / "dataset.html").read_text()
    assert page.count("data:image/png;base64") == 6 + 5
    assert "stage two, 5 masks" in page
    check_same_numbers(page, messages)

    assert main(["data", str(shapes), "--page", str(tmp_path / "page.html")]) == 0
    text = capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png;base64") == 8
    check_same_numbers(page, text)
    assert "masks were not opened" not in page

    (tmp_path / "broken.jpg").write_text("text")
    command = ["segment", str(shapes / "val"), str(tmp_path / "broken.jpg"), "--out", str(tmp_path / "segmented")]
    assert main([*command, "--checkpoint", document["budgets"][0]["checkpoint"], "--json"]) == 2
    document, messages = read_document(capsys)
    assert len(document["images"]) == 3
    assert list(document["failures"]) == [str(tmp_path / "broken.jpg")]
    predictions = json.loads(Path(document["predictions"]).read_text())
    assert document["objects"] == len(predictions["annotations"])
    assert "3 of 4 images segmented" in messages


def check_same_numbers(page: str, text: str) -> None:
    """The table of splits on a page holds the same cells as the printed one."""
    printed = [line.split() for line in text.split("Splits\n", 1)[1].split("\n\n")[0].splitlines()[2:]]
    table = page.split("<h3>Splits</h3>", 1)[1].split("</table>")[0].split("<tbody>")[1]
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table.split("</tr>") if row.strip("</tbody>")]
    assert cells == printed
    assert len(printed) == 3


def test_values_become_plain_json() -> None:
    value = {"a": (1, float("nan"), Path("x")), 2: {"b": float("inf"), "c": None, "d": True}}
    assert plain(value) == {"a": [1, None, "x"], "2": {"b": None, "c": None, "d": True}}
