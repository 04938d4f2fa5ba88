"""The bound holds, the least recently used files leave first, and concurrent writers do not harm each other."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dasnet_lightning.feature_cache.folder import ABANDONED, BoundedFolder


def name(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def fill(folder: Path, numbers: range, size: int = 100) -> None:
    """Files of an earlier run, used one second after the other, long ago."""
    files = BoundedFolder(folder, 10**9, ".bin")
    for number in numbers:
        files.write(name(number), bytes(size))
        os.utime(folder / f"{name(number)}.bin", (1000 + number, 1000 + number))


def there(folder: Path, numbers: range) -> list[int]:
    return [number for number in numbers if (folder / f"{name(number)}.bin").exists()]


def test_the_bound_holds_under_many_writes(tmp_path):
    for run in range(5):
        files = BoundedFolder(tmp_path, 1000, ".bin")  # each run may replace what earlier ones left
        for number in range(8):
            files.write(name(100 * run + number), bytes(80 + 7 * number))
            assert total(tmp_path) <= 1000
            assert files.find(name(100 * run + number)) is not None


def test_the_longest_unused_leave_first(tmp_path):
    fill(tmp_path, range(8))
    files = BoundedFolder(tmp_path, 1000, ".bin")
    assert files.find(name(0)) is not None
    for number in range(20, 25):
        files.write(name(number), bytes(100))
    assert there(tmp_path, range(30)) == [0, 4, 5, 6, 7, *range(20, 25)]


def test_what_another_process_used_since_then_is_not_the_longest_unused(tmp_path):
    fill(tmp_path, range(8))
    files = BoundedFolder(tmp_path, 1000, ".bin")
    files.write(name(20), bytes(100))  # the folder was read
    assert BoundedFolder(tmp_path, 1000, ".bin").find(name(0)) is not None
    for number in range(21, 24):
        files.write(name(number), bytes(100))
    assert there(tmp_path, range(30)) == [0, *range(3, 8), *range(20, 24)]


def test_what_another_process_removed_since_then_makes_room(tmp_path):
    fill(tmp_path, range(8))
    files = BoundedFolder(tmp_path, 1000, ".bin")
    files.write(name(20), bytes(100))  # the folder was read
    for number in range(3):
        BoundedFolder(tmp_path, 1000, ".bin").remove(name(number))
    for number in range(21, 25):
        files.write(name(number), bytes(100))
    assert there(tmp_path, range(30)) == [*range(3, 8), *range(20, 25)]


def test_files_in_use_stay_and_later_ones_are_not_kept(tmp_path):
    files = BoundedFolder(tmp_path, 450, ".bin")
    for number in range(4):
        files.write(name(number), bytes(100))
    with pytest.warns(UserWarning, match=r"files in use fill its 0\.0 GB, no more are stored"):
        files.write(name(4), bytes(100))
    files.write(name(5), bytes(10))  # no second warning
    assert there(tmp_path, range(9)) == [0, 1, 2, 3]


def test_a_file_that_is_written_again_counts_once(tmp_path):
    files = BoundedFolder(tmp_path, 450, ".bin")
    for _ in range(10):
        for number in range(4):
            files.write(name(number), bytes(100))
    files.remove(name(0))
    files.write(name(7), bytes(140))
    assert there(tmp_path, range(9)) == [1, 2, 3, 7]


def test_nothing_else_in_the_folder_is_touched(tmp_path):
    mine = {"model.bin", f"{name(0)}.safetensors", f"{name(1)[:63]}.bin", ".hidden", "notes.txt"}
    for each in mine:
        (tmp_path / each).write_bytes(bytes(500))
        os.utime(tmp_path / each, (0, 0))
    files = BoundedFolder(tmp_path, 250, ".bin")
    for number in range(2):
        files.write(name(number), bytes(100))
    assert mine <= {path.name for path in tmp_path.iterdir()}


def test_what_killed_processes_left_half_written_goes(tmp_path):
    long_ago = time.time() - ABANDONED - 10
    for each, used in (("old", long_ago), ("new", time.time())):
        path = tmp_path / f".{name(0)}.bin.{each}"
        path.write_bytes(bytes(10))
        os.utime(path, (used, used))
    BoundedFolder(tmp_path, 1000, ".bin").write(name(1), bytes(10))
    assert {path.name for path in tmp_path.iterdir()} == {f".{name(0)}.bin.new", f"{name(1)}.bin"}


WRITER = """
import hashlib, sys
from dasnet_lightning.feature_cache.folder import BoundedFolder
files = BoundedFolder(sys.argv[1], 200_000, ".bin")
for turn in range(3):
    for number in range(60):
        name = hashlib.sha256(str(number).encode()).hexdigest()
        path = files.find(name)
        if path is not None:
            assert path.read_bytes() == bytes([number]) * 1000, "half a file"
        files.write(name, bytes([number]) * 1000)
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 100):
    files.write(hashlib.sha256(str(number).encode()).hexdigest(), bytes(1000))
"""


def test_two_processes_write_the_same_files_at_once(tmp_path):
    """The same sixty, and a hundred of each its own: together more than the bound, by at most a sixteenth for each."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    commands = [[sys.executable, "-c", WRITER, str(tmp_path), first] for first in ("1000", "2000")]
    writers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [writer.communicate(timeout=60)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], errors
    assert not list(tmp_path.glob(".*"))
    assert total(tmp_path) <= 200_000 * (1 + 2 / 16)
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {1000}
