"""Annotations that are killed and continued, or made by several processes, end with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_annotate import make_mixed, save, tree

import dasnet_lightning
from dasnet_lightning.annotation.journal import FOLDER, ImageMasks, Journal
from dasnet_lightning.errors import ConfigError

IMAGES = 12  # of each split
CODE = """
import sys, time
import dasnet_lightning
from dasnet_lightning.annotation import journal
plain = journal.write_bytes
def slow(*args, **options):  # so that the kill arrives while parts are written
    plain(*args, **options)
    time.sleep(0.15)
journal.write_bytes = slow
dasnet_lightning.annotate(*sys.argv[1:4], device="cpu", batch_size=1, format="coco", min_quality=0.2)
"""


@pytest.mark.slow
def test_killed_and_continued_is_the_same(tmp_path: Path) -> None:
    root, checkpoint = make_mixed(tmp_path / "in", IMAGES), save(tmp_path)
    options = {"device": "cpu", "batch_size": 1, "format": "coco", "min_quality": 0.2}
    dasnet_lightning.annotate(root, checkpoint, tmp_path / "whole", **options)
    expected = tree(tmp_path / "whole")
    for parts in (1, 4, 12):  # the last one is killed while the data set is assembled, or just before
        out = tmp_path / f"killed{parts}"
        command = [sys.executable, "-c", CODE, str(root), str(checkpoint), str(out)]
        process = subprocess.Popen(command, env=os.environ, start_new_session=True)
        while len(list((out / FOLDER / "parts").glob("0*.json"))) < parts:
            assert process.poll() is None, "the process ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "annotations").exists()
        result = dasnet_lightning.annotate(root, checkpoint, out, **options)
        assert result.segmented <= 2 * IMAGES - 2 * parts
        assert tree(out) == expected
        assert [path.name for path in (out / FOLDER).iterdir()] == ["state.json"]


@pytest.mark.slow
def test_two_processes_give_the_same(tmp_path: Path) -> None:
    root, checkpoint = make_mixed(tmp_path / "in", 5), save(tmp_path)
    options = {"device": "cpu", "batch_size": 1, "format": "labelme"}
    one = dasnet_lightning.annotate(root, checkpoint, tmp_path / "one", **options)
    two = dasnet_lightning.annotate(root, checkpoint, tmp_path / "two", devices=2, **options)
    assert (one.kept_as, one.segmented) == (two.kept_as, two.segmented)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"checkpoint": "a"})
    journal.write_part(0, [ImageMasks([(1, "abc", 0.5)]), ImageMasks([], "broken")])
    assert list(journal.read_part(0)) == [ImageMasks([(1, "abc", 0.5)]), ImageMasks([], "broken")]
    file = next((tmp_path / FOLDER / "parts").iterdir())
    file.write_bytes(file.read_bytes()[:-5])
    assert not journal.has_part(0)
    assert not journal.has_part(1)


def test_an_interrupted_move_continues(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    staging = journal.begin_assembly()
    for name in ("a", "b"):
        (staging / name).mkdir()
        (staging / name / "file").write_text(name)
    journal.assembled({"images": 2})
    (staging / "a").rename(tmp_path / "a")  # then it was killed
    again = Journal(tmp_path, {})
    assert again.stage == "move"
    again.move()
    assert (again.stage, again.result) == ("done", {"images": 2})
    assert {name: content.decode() for name, content in tree(tmp_path).items()} == {"a/file": "a", "b/file": "b"}
    with pytest.raises(ConfigError, match="another checkpoint"):
        Journal(tmp_path, {"checkpoint": "b"})
