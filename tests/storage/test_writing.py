"""Files on disk after a writer died: the tests kill it at every system call that changes something."""

import errno
import multiprocessing
import os
import shutil
import warnings
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.storage import checksum as seal
from dasnet_lightning.storage import writing
from dasnet_lightning.storage.reading import read_tensors
from dasnet_lightning.storage.writing import previous_of, remove_leftovers, write_tensors


def content(number: int) -> dict:
    return {"number": number, "weights": torch.full((3000,), float(number))}


def number_in(path: Path) -> int:
    found = read_tensors(path)
    assert bool((found["weights"] == found["number"]).all())
    return found["number"]


def test_the_last_two_are_kept(tmp_path):
    last = tmp_path / "new folder" / "last.ckpt"
    for number in range(3):
        write_tensors(content(number), last)
    assert previous_of(last).name == "last.previous.ckpt"
    assert (number_in(last), number_in(previous_of(last))) == (2, 1)
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]
    write_tensors(content(3), last, keep=False)
    assert (number_in(last), number_in(previous_of(last))) == (3, 1)


def test_it_works_without_hard_links(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    for number in range(3):
        write_tensors(content(number), tmp_path / "last.ckpt")
    assert (number_in(tmp_path / "last.ckpt"), number_in(tmp_path / "last.previous.ckpt")) == (2, 1)


CALLS = [(os, "fsync"), (Path, "hardlink_to"), (Path, "replace"), (Path, "unlink")]


def die_at(call: int, path: Path, linkless: bool) -> None:
    """Write number 2 in a process of its own, which is gone just before its n-th call of those that change something."""
    passed = 0

    def mortal(function):
        def run(*arguments, **options):
            nonlocal passed
            if passed == call:
                os._exit(9)
            passed += 1
            return function(*arguments, **options)

        return run

    if linkless:
        Path.hardlink_to = lambda self, target: (_ for _ in ()).throw(OSError(errno.ENOTSUP, "none"))
    for owner, name in CALLS if linkless else [(seal.SealingFile, "write"), *CALLS]:
        setattr(owner, name, mortal(getattr(owner, name)))
    write_tensors(content(2), path)
    os._exit(0)


@pytest.mark.parametrize("linkless", [False, True])
def test_a_writer_that_dies_at_any_moment_leaves_a_good_file(tmp_path, linkless):
    before, last = tmp_path / "before", tmp_path / "now" / "last.ckpt"
    for number in (0, 1):
        write_tensors(content(number), before / "last.ckpt")
    seen = set()
    for call in range(200):
        shutil.rmtree(last.parent, ignore_errors=True)
        shutil.copytree(before, last.parent)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads
            child = multiprocessing.get_context("fork").Process(target=die_at, args=(call, last, linkless))
            child.start()
        child.join()
        found = [number_in(path) for path in (last, previous_of(last)) if path.exists()]  # each of them is whole
        seen.add(tuple(found))
        assert max(found) >= 1
        if child.exitcode == 0:
            break
        assert child.exitcode == 9
        write_tensors(content(3), last)  # and the next one neither stumbles nor leaves anything behind
        assert number_in(last) == 3
        assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]
    assert child.exitcode == 0, "all moments were tried"
    assert call > 6
    middle = {(1,)} if linkless else {(1, 1)}
    assert seen == {(1, 0), (2, 1)} | middle


class FullFile:
    """A file on a disk with room for so many bytes."""

    def __init__(self, file, room: int, code: int) -> None:
        self.file, self.room, self.code = file, room, code

    def write(self, data: bytes) -> int:
        if len(data) > self.room:
            self.file.write(data[: self.room])
            self.room = 0
            raise OSError(self.code, os.strerror(self.code))
        self.room -= len(data)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize("room", [0, 500, 9000])
@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota is used up"), (errno.EFBIG, "exceeds the size limit")],
)
def test_a_full_disk_is_one_sentence_and_the_old_files_stay(tmp_path, monkeypatch, room, code, reason):
    last = tmp_path / "last.ckpt"
    for number in range(2):
        write_tensors(content(number), last)
    size = last.stat().st_size
    real = Path.open
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10**6, 10**6 - 7, 7))
    with monkeypatch.context() as full:
        full.setattr(writing.Path, "open", lambda path, mode="r": FullFile(real(path, mode), room, code))
        with pytest.raises(CheckpointError, match=rf"last\.ckpt: not written, .*{reason}") as caught:
            write_tensors(content(2), last)
    assert f"{size:,} bytes are needed, 7 are free" in str(caught.value)
    assert (number_in(last), number_in(previous_of(last))) == (1, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last.previous.ckpt"]


def test_a_real_full_disk(tmp_path):
    """/dev/full is one."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    last = tmp_path / "last.ckpt"
    write_tensors(content(0), last)
    (tmp_path / f".last.ckpt.{os.getpid()}.tmp").symlink_to("/dev/full")
    real, writing.remove_leftovers = writing.remove_leftovers, lambda folder: None
    try:
        with pytest.raises(CheckpointError, match=r"the disk is full: [0-9,]+ bytes are needed"):
            write_tensors(content(1), last)
    finally:
        writing.remove_leftovers = real
    assert number_in(last) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot be written: (File exists|Not a directory)"):
        write_tensors(content(0), tmp_path / "file" / "last.ckpt")


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        write_tensors({"a": lambda: None}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_leftovers_go_and_the_files_of_others_stay(tmp_path):
    gone = 2**22 - 1  # beyond every process number that Linux gives by default
    left = [f".last.ckpt.{gone}.tmp", f".epoch=1-step=2.previous.ckpt.{gone}.tmp", f".last.ckpt.{os.getpid()}.tmp"]
    stay = [f".last.ckpt.{os.getppid()}.tmp", ".notes.tmp", "last.ckpt.12.tmp", ".last.ckpt.x.tmp"]
    for name in left + stay:
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
    remove_leftovers(tmp_path / "none")
