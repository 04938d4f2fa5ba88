"""COCO data sets with one instances file for each image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import Fix
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.coco_json import CocoFile, read_coco
from dasnet_lightning.data.sources.coco_spellings import find_coco_spelled
from dasnet_lightning.data.sources.image_index import ImageIndex, index_images, list_files
from dasnet_lightning.data.sources.shape_data import TRAIN, VAL, split_name
from dasnet_lightning.errors import DataError

HEAD_BYTES = 65_536
TABLES = (b'"images"', b'"annotations"', b'"categories"')


def find_coco_per_image(root: Path) -> dict[str, CocoFile] | None:
    """Read a folder with one COCO file for each image as one file for each split; None if it is another layout.

    Image and annotation ids become `NAME/ID` with the name of their file, so that messages lead there.

    Raises:
        DataError: a file is damaged, or its records contradict each other.
    """
    files = list_files(root, (".json",)) if root.is_dir() else []
    if len(files) < 3 or not _is_single(files[0]) or find_coco_spelled(root) is not None:
        return None
    index = index_images(root)
    splits: dict[str, list[CocoFile]] = {}
    for file in files:
        folders = [split_name(part) for part in file.relative_to(root).parts[:-1]]
        name = next((part for part in folders if part in (TRAIN, VAL, "test")), "all")
        splits.setdefault(name, []).append(_rename(read_coco(file), root, index))
    categories = _list_categories([content for contents in splits.values() for content in contents])
    return {name: _merge(root, contents, categories) for name, contents in splits.items()}


def open_coco_per_image(
    root: Path, contents: Mapping[str, CocoFile], allow_missing: bool, fix: Fix
) -> tuple[COCOSource, COCOSource | None, tuple[Problem, ...]]:
    """Build the training and the validation source (None if there is none), and the problems of neither."""
    train, val = contents.get(TRAIN), contents.get(VAL)
    if train is None:
        train, val = next(iter(contents.values())), None
    notes = [
        Problem(root, f"split '{name}'", f"{len(content.images)} images are not used", "warning")
        for name, content in contents.items()
        if content not in (train, val)
    ]
    sources = [
        None if content is None else COCOSource(root, root, allow_missing=allow_missing, fix=fix, content=content)
        for content in (train, val)
    ]
    assert sources[0] is not None
    return sources[0], sources[1], tuple(notes)


def _is_single(file: Path) -> bool:
    """Whether a file looks like a COCO instances file with one image."""
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    return all(table in head for table in TABLES) and head.count(b'"file_name"') == 1


def _rename(content: CocoFile, root: Path, index: ImageIndex) -> CocoFile:
    """Return the content with ids that name its file, class names as category ids, and image paths below the root."""
    prefix = content.path.relative_to(root).with_suffix("").as_posix()
    names = {row["id"]: row["name"] for row in content.categories}
    images: list[dict[str, Any]] = []
    for image in content.images:
        path, _ = index.find(image["file_name"], content.path.parent)
        name = path.relative_to(root).as_posix() if path else image["file_name"]
        images.append({**image, "id": f"{prefix}/{image['id']}", "file_name": name})
    annotations = [
        {**row, "id": f"{prefix}/{row['id']}", "image_id": f"{prefix}/{row['image_id']}",
         "category_id": names[row["category_id"]]}
        for row in content.annotations
    ]  # fmt: skip
    return CocoFile(content.path, images, annotations, content.categories)


def _list_categories(contents: Sequence[CocoFile]) -> list[dict[str, Any]]:
    """Return the classes of all files by name, in the order of their first appearance."""
    names = dict.fromkeys(row["name"] for content in contents for row in content.categories)
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]


def _merge(root: Path, contents: Sequence[CocoFile], categories: list[dict[str, Any]]) -> CocoFile:
    ids = {row["name"]: row["id"] for row in categories}
    images = [image for content in contents for image in content.images]
    names = [image["file_name"] for image in images]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{root}: several files describe the image '{repeated}', keep one of them")
    rows = [{**row, "category_id": ids[row["category_id"]]} for content in contents for row in content.annotations]
    return CocoFile(root, images, rows, categories)
