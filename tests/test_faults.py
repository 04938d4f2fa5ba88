"""The short form of experiments/faults/faults.py: every fault is provoked, once or a few times."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "faults" / "faults.py"
FAULTS = re.findall(r'^    "(.*)": \w+,$', SCRIPT.with_name("scenarios.py").read_text(), re.M)
LONG = ("SIGKILL again and again", "memory over 100 epochs")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the script says of each fault, by its name. In a process of its own: it forks."""
    out = tmp_path_factory.mktemp("faults")
    command = [sys.executable, str(SCRIPT), "--short", "--kills", "2", "--seed", "1", "--out", str(out)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1100
    )
    assert (out / "faults.json").is_file(), done.stderr
    return {line["fault"]: line for line in json.loads((out / "faults.json").read_text())}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in LONG])
def test_nothing_is_lost(fault, outcomes):
    assert outcomes[fault]["held"], outcomes[fault]["outcome"]


def test_all_are_named():
    assert len(FAULTS) >= 12
    assert set(LONG) < set(FAULTS)
