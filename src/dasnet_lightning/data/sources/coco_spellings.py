"""COCO data sets in less usual spellings, such as `instances_Train.json` or files in folders of splits."""

import re
from pathlib import Path

from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.coco_layout import CocoLayout, find_coco
from dasnet_lightning.data.sources.image_index import list_files
from dasnet_lightning.data.sources.shape_data import TEST, TRAIN, VAL, split_name
from dasnet_lightning.errors import DataError

SPLIT_WORD = re.compile(r"[A-Za-z]+")


def find_coco_layout(root: Path) -> CocoLayout | None:
    """Return the annotation files at or below `root` in the usual layouts or any spelling; None if there are none.

    Raises:
        DataError: several files could be meant.
    """
    try:
        layout = find_coco(root)
    except DataError:
        layout = find_coco_spelled(root)
        if layout is None:
            raise
    return layout or (find_coco_spelled(root) if root.is_dir() else None)


def find_coco_spelled(root: Path) -> CocoLayout | None:
    """Return the files of a training and a validation split in any spelling; None if they cannot be told apart.

    The word for the split stands in the file name or, for files like `Train/_annotations.coco.json`, in that of the folder.
    """
    files = [path for path in list_files(root, (".json",)) if len(path.relative_to(root).parts) <= 2]
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_find_split(path, root), []).append(path)
    train, val = splits.get(TRAIN, []), splits.get(VAL, [])
    if len(train) != 1 or len(val) > 1:
        return None
    return CocoLayout(train[0], val[0] if val else None)


def list_unused_tests(root: Path) -> list[Problem]:
    """Return a note for each annotation file of a test split, which neither trains nor validates."""
    files = [*sorted(root.glob("*.json")), *sorted(root.glob("*/*.json"))] if root.is_dir() else []
    text = "this test split is used neither for training nor for validation"
    return [Problem(path, "file", text, "warning") for path in files if _find_split(path, root) == TEST]


def spelled_folders(file: Path, root: Path) -> list[Path]:
    """Return folders that may hold the images of an annotation file, whatever the case of their names."""
    split = _find_split(file, root)
    tops = [folder for folder in (root, root / "images", root / "Images") if folder.is_dir()]
    folders = [
        path for top in tops for path in sorted(top.iterdir()) if path.is_dir() and split_name(path.name) == split
    ]
    inside = [path / "images" for path in folders if (path / "images").is_dir()]
    return [*folders, *inside, *tops] if split else tops


def _find_split(file: Path, root: Path) -> str:
    """Return the split that the words of a file name, or else of its folder, stand for; "" if there is none."""
    words = SPLIT_WORD.findall(file.stem) + (SPLIT_WORD.findall(file.parent.name) if file.parent != root else [])
    names = [split_name(word) for word in words]
    return next((name for name in names if name in (TRAIN, VAL, TEST)), "")
