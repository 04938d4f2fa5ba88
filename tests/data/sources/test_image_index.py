"""Images by the names that annotation files write."""

from pathlib import Path

import pytest
from shape_builders import pictures

from dasnet_lightning.data.sources.image_index import assign_ids, index_images


def make(root: Path) -> None:
    pictures(
        root, "train/images/a.jpg", "valid/images/a.jpg", "images/x y.png", "images/lit%20eral.jpg", ".hidden/h.jpg"
    )


@pytest.mark.parametrize(
    ("name", "near", "found"),
    [
        ("train/images/a.jpg", None, "train/images/a.jpg"),
        ("C:\\data\\valid\\images\\a.jpg", None, "valid/images/a.jpg"),
        ("a.jpg", "train", "train/images/a.jpg"),
        ("a.jpg", "valid/labels", "valid/images/a.jpg"),
        ("file:///x/x%20y.png", None, "images/x y.png"),
        ("lit%20eral.jpg", None, "images/lit%20eral.jpg"),
        ("../images/x y.png", "labels", "images/x y.png"),
    ],
)
def test_names_mean_one_image(tmp_path: Path, name: str, near: str | None, found: str) -> None:
    make(tmp_path)
    assert index_images(tmp_path).find(name, near and tmp_path / near) == (tmp_path / found, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jpg", "could be train/images/a.jpg and valid/images/a.jpg"), ("", "is empty"), ("h.jpg", "does not exist"),
     ("images/a.jpg", "does not exist")],
)  # fmt: skip
def test_unclear_names_are_refused(tmp_path: Path, name: str, text: str) -> None:
    make(tmp_path)
    path, reason = index_images(tmp_path).find(name)
    assert path is None
    assert text in reason


def test_links_out_of_the_folder_are_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, "outside/a.jpg", "root/b.jpg")
    (tmp_path / "root" / "a.jpg").symlink_to(tmp_path / "outside" / "a.jpg")
    assert [path.name for path in index_images(tmp_path / "root").paths] == ["b.jpg"]


def test_ids_keep_the_suffix_only_where_two_would_be_equal(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("s/a.jpg", "s/a.png", "b.jpg")]
    assert list(assign_ids(tmp_path, paths).values()) == ["s/a.jpg", "s/a.png", "b"]
