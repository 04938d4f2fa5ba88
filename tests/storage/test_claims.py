"""Claims of work: one owner at a time, taken over from processes that ended or fell silent."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from dasnet_lightning.storage.claims import STALE, claim, describe_owner


def test_a_claim_has_one_owner_and_ends_with_the_body(tmp_path: Path):
    path = tmp_path / "work" / "claim.json"
    with claim(path) as first:
        assert first
        assert str(os.getpid()) in describe_owner(path)
        with claim(path) as second:
            assert not second
        assert path.is_file()
    assert not path.exists()
    with claim(path) as again:
        assert again


def test_the_claim_of_a_killed_process_is_taken_over(tmp_path: Path):
    path = tmp_path / "claim.json"
    code = (
        "import os, signal, sys; from pathlib import Path; from dasnet_lightning.storage.claims import claim\n"
        "with claim(Path(sys.argv[1])) as mine:\n    assert mine; os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert path.is_file()
    with claim(path) as mine:
        assert mine


def test_a_claim_of_another_machine_is_kept_until_it_is_silent(tmp_path: Path):
    path = tmp_path / "claim.json"
    path.write_text(json.dumps({"host": socket.gethostname() + "-other", "pid": 1, "id": "x"}))
    with claim(path) as mine:
        assert not mine
    long_ago = time.time() - STALE - 1
    os.utime(path, (long_ago, long_ago))
    with claim(path) as mine:
        assert mine
