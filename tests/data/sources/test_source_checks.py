"""Checks of boxes, paths and class names that all sources share."""

from pathlib import Path

import pytest
from data_builders import write_picture

from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import (
    RecordsError,
    check_box,
    check_class_names,
    check_fix,
    describe_object,
    locate_files,
    parse_object,
    unsafe_path,
)
from dasnet_lightning.errors import ConfigError

SIZE = (30, 40)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((5, 5, 5, 9), "zero width"),
        ((5, 9, 8, 9), "zero height"),
        ((9, 5, 5, 9), "negative width, are the corners swapped"),
        ((5, 9, 9, 5), "negative height"),
        ((NAN, 5, 9, 9), "not finite"),
        ((5, 5, INF, 9), "not finite"),
        ((50, 5, 60, 9), "outside the image of 40x30"),
        ((-9, 5, 0, 9), "outside the image"),
    ],
)
def test_unusable_boxes_are_refused_with_the_reason(box: tuple[float, float, float, float], words: str) -> None:
    checked = check_box(box, SIZE)
    assert checked.box is None
    assert checked.action == "refused"
    assert words in checked.message


def test_a_box_partly_outside_is_clipped_and_said() -> None:
    checked = check_box((-3, 5, 50, 9), SIZE)
    assert checked.box == (0, 5, 40, 9)
    assert checked.action == "clipped"
    assert "[-3, 5, 50, 9]" in checked.message


def test_rounding_noise_is_clipped_but_not_listed() -> None:
    checked = check_box((-0.001, 5, 40.004, 9), SIZE)
    assert (checked.box, checked.action) == ((0, 5, 40, 9), "")


def test_a_box_inside_is_left_alone() -> None:
    assert check_box((0, 0, 40, 30), SIZE).box == (0, 0, 40, 30)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "C:\\a.jpg", "\\\\host\\a.jpg", "../a.jpg", "a\\..\\b.jpg", "a/../../b.jpg", "", "a\0b"]
)
def test_paths_out_of_the_folder_are_unsafe(name: str) -> None:
    assert unsafe_path(name)


@pytest.mark.parametrize("name", ["a.jpg", "a b/ü ñ.jpg", "a\\b.jpg", "..a/b..jpg"])
def test_usual_paths_are_safe(name: str) -> None:
    assert unsafe_path(name) == ""


def test_files_are_located_with_spaces_unicode_and_backslashes(tmp_path: Path) -> None:
    write_picture(tmp_path / "two words" / "größe.jpg")
    write_picture(tmp_path / "sub" / "b.jpg")
    paths, faults = locate_files(tmp_path, ["two words/größe.jpg", "sub\\b.jpg", "sub/none.jpg", "../x.jpg"])
    assert paths["two words/größe.jpg"].is_file()
    assert paths["sub\\b.jpg"] == tmp_path / "sub" / "b.jpg"
    assert "does not exist" in faults["sub/none.jpg"]
    assert ".." in faults["../x.jpg"]


def test_links_are_followed_inside_the_folder_only(tmp_path: Path) -> None:
    outside = write_picture(tmp_path / "outside" / "a.jpg")
    root = tmp_path / "root"
    inside = write_picture(root / "real" / "b.jpg")
    (root / "file.jpg").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    (root / "good.jpg").symlink_to(inside)
    paths, faults = locate_files(root, ["file.jpg", "folder/a.jpg", "good.jpg", "real/b.jpg"])
    assert set(paths) == {"good.jpg", "real/b.jpg"}
    assert "leads out" in faults["file.jpg"]
    assert "leads out" in faults["folder/a.jpg"]


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    write_picture(tmp_path / "disk" / "a.jpg")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert set(locate_files(tmp_path / "data", ["a.jpg"])[0]) == {"a.jpg"}


def test_descriptions_are_read_back() -> None:
    for parts in (("12", "a/b.jpg", "cat"), ("x/1", "it's (1), class 'y'.jpg", "traffic light")):
        assert parse_object(describe_object("annotation", *parts)) == parts
    assert parse_object("image 'a.jpg'") is None


def test_the_message_shows_twenty_and_the_error_keeps_all() -> None:
    problems = [Problem(Path("f.json"), f"annotation {number}", "is wrong", "refused") for number in range(50)]
    error = RecordsError(problems, "Mend it.")
    lines = str(error).splitlines()
    assert len(lines) == 22
    assert lines[0] == "f.json: annotation 0: is wrong"
    assert lines[20:] == ["... and 30 more", "Mend it."]
    assert len(error.problems) == 50


def test_class_names_that_differ_by_case_or_space_are_warned_about() -> None:
    found = check_class_names(Path("f"), ["traffic light", "cat", "Traffic_Light", "dog"])
    assert [problem.action for problem in found] == ["warning"]
    assert "'traffic light', 'Traffic_Light'" in found[0].record


def test_an_unknown_fix_is_refused() -> None:
    with pytest.raises(ConfigError, match="error, drop"):
        check_fix("repair")
