"""The detector of docs/add_a_detector.md has at most fifty lines and passes the tests of registered detectors."""

import json
import re
from pathlib import Path

import pytest
from test_conformance import (  # noqa: F401  (fixtures of the conformance class)
    TestConformance,
    built,
    detector,
    images,
    pyramid,
    size,
    undrawn,
)

from dasnet_lightning.detectors import DETECTORS

ROOT = Path(__file__).resolve().parents[2]
CODE = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "add_a_detector.md").read_text(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def name():
    """Run the code of the page; the conformance class tests what it registers, which is then unregistered."""
    exec(compile(CODE, "add_a_detector.md", "exec"), {"__name__": "add_a_detector"})
    yield "cells"
    del DETECTORS._entries["cells"]


def test_the_detector_has_at_most_fifty_lines():
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 50


def test_the_notebook_holds_the_same_code():
    cells = json.loads((ROOT / "notebooks" / "02_your_own_detector.ipynb").read_text())["cells"]
    assert CODE.rstrip("\n") in ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
