"""Reading a COCO JSON: what kind of file it is, whether its records hang together, and where its images lie."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import MAX_SIDE, RecordsError, locate_files
from dasnet_lightning.errors import DataError

KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}


@dataclass(frozen=True, eq=False)
class CocoFile:
    """The three tables of an instances file whose ids are unique and refer to each other.

    `image_folder` is where the images of our own predictions lie, relative to the file; "" in other files.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    image_folder: str = ""


def read_coco(path: Path) -> CocoFile:
    """Read an instances file. Raises DataError that says what a foreign file is, or lists the records at fault."""
    content = read_json(path)
    _check_kind(path, content)
    images, annotations, categories = (content[table] for table in KEYS)
    file = CocoFile(path, images, annotations, categories, _find_image_folder(content.get("info")))
    faults = [fault for table in KEYS for fault in _check_rows(path, table, content[table])]
    if faults:
        raise RecordsError(faults, f"{len(faults)} records are incomplete; export the file again or correct them.")
    faults = [*_duplicates(file), *_strangers(file)]
    if faults:
        raise RecordsError(faults, f"{len(faults)} records contradict each other; correct the file.")
    return file


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises DataError where it is missing, damaged, or nested too deeply."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise DataError(f"{path}: is nested too deeply for an annotation file, refused") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: is no valid JSON ({error}), export the file again") from error


def is_instances(content: Any) -> bool:
    """Whether a parsed JSON has the tables of a COCO instances file."""
    return isinstance(content, dict) and all(isinstance(content.get(table), list) for table in KEYS)


def choose_image_root(file: CocoFile, candidates: Iterable[Path]) -> Path:
    """The first folder that holds one of the file's first images. Raises DataError with the folders that were tried."""
    folders = list(dict.fromkeys(candidates))
    names = [str(image["file_name"]) for image in file.images[:50]]
    for folder in folders:
        if locate_files(folder, names)[0]:
            return folder
    tried = ", ".join(str(folder) for folder in folders)
    raise DataError(f"{file.path}: found none of its images (the first is '{names[0]}'), looked in {tried}")


def _check_kind(path: Path, content: Any) -> None:
    expected = "expected a COCO instances file with 'images', 'annotations' and 'categories'"
    if isinstance(content, list):
        raise DataError(f"{path}: is a list, as files of predictions (COCO results) are; {expected}")
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no COCO file, {expected}")
    first = content.get("annotations")
    rows = [row for row in first[:100] if isinstance(row, dict)] if isinstance(first, list) else []
    for key, kind in (("caption", "captions"), ("segments_info", "panoptic segments"), ("keypoints", "key points")):
        if any(key in row and "bbox" not in row for row in rows):
            raise DataError(f"{path}: is a file of {kind}, its annotations have no 'bbox'; {expected}")
    missing = [table for table in KEYS if not isinstance(content.get(table), list)]
    if missing:
        raise DataError(f"{path}: has no list {' and no list '.join(map(repr, missing))}; {expected}")
    for table in ("images", "categories"):
        if not content[table]:
            raise DataError(f"{path}: its list '{table}' is empty, {expected}")


def _find_image_folder(info: Any) -> str:
    folder = info.get("image_folder") if isinstance(info, dict) else None
    return folder if isinstance(folder, str) and not PurePosixPath(folder).is_absolute() else ""


def _check_rows(path: Path, table: str, rows: Sequence[Any]) -> list[Problem]:
    faults = []
    for number, row in enumerate(rows):
        name = f"{table}[{number}]"
        if not isinstance(row, dict):
            faults.append(Problem(path, name, "is no record", "refused"))
            continue
        lacking = [key for key in KEYS[table] if row.get(key) is None]
        if lacking:
            faults.append(Problem(path, name, f"has no {', '.join(map(repr, lacking))}", "refused"))
        elif not _well_typed(row):
            faults.append(Problem(path, name, "has an id, size or name of the wrong type or range", "refused"))
    return faults


def _well_typed(row: dict[str, Any]) -> bool:
    ids = [row[key] for key in ("id", "image_id", "category_id") if key in row]
    sides = [row[key] for key in ("height", "width") if key in row and "file_name" in row]
    texts = [row[key] for key in ("file_name", "name") if key in row]
    return (
        all(type(item) in (int, str) for item in ids)
        and all(type(side) is int and 0 < side <= MAX_SIDE for side in sides)
        and all(isinstance(text, str) for text in texts)
    )


def _duplicates(file: CocoFile) -> list[Problem]:
    kinds = (
        ("image id", [str(image["id"]) for image in file.images]),
        ("image file", [image["file_name"] for image in file.images]),
        ("annotation id", [str(row["id"]) for row in file.annotations]),
        ("category id", [row["id"] for row in file.categories]),
        ("category name", [row["name"] for row in file.categories]),
    )
    return [
        Problem(file.path, f"{kind} '{value}'", f"occurs {count} times, expected once", "refused")
        for kind, values in kinds
        for value, count in Counter(values).items()
        if count > 1
    ]


def _strangers(file: CocoFile) -> list[Problem]:
    images = {image["id"] for image in file.images}
    categories = {category["id"] for category in file.categories}
    return [
        Problem(file.path, f"annotation {row['id']}", f"refers to the unknown {kind} {row[key]!r}", "refused")
        for row in file.annotations
        for key, kind, known in (("image_id", "image", images), ("category_id", "category", categories))
        if row[key] not in known
    ]
