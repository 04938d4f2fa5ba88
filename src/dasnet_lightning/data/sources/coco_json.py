"""Reading of COCO JSON files: the kind of file, the consistency of its records, and the folder of its images."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import MAX_SIDE, RecordsError, locate_files
from dasnet_lightning.errors import DataError

REQUIRED_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}


@dataclass(frozen=True, eq=False)
class CocoFile:
    """The three tables of an instances file; ids are unique, and every reference is valid."""

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def read_coco(path: Path) -> CocoFile:
    """Read an instances file. Raises DataError that names another kind of file, or lists the invalid records."""
    content = read_json(path)
    _check_file_kind(path, content)
    file = CocoFile(path, *(content[table] for table in REQUIRED_KEYS))
    faults = [fault for table in REQUIRED_KEYS for fault in _check_rows(path, table, content[table])]
    if faults:
        raise RecordsError(faults, f"{len(faults)} records are incomplete; export the file again or correct them.")
    faults = [*_find_duplicates(file), *_find_dangling_references(file)]
    if faults:
        raise RecordsError(faults, f"{len(faults)} records contradict each other; correct the file.")
    return file


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises DataError if it is missing, damaged, or nested too deeply."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for an annotation file, export the file again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}), check the path") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}), export the file again") from error


def is_instances(content: Any) -> bool:
    """Return whether a parsed JSON file has the tables of a COCO instances file."""
    return isinstance(content, dict) and all(isinstance(content.get(table), list) for table in REQUIRED_KEYS)


def choose_image_root(file: CocoFile, candidates: Iterable[Path]) -> Path:
    """Return the first folder that contains one of the file's first 50 images. Raises DataError with the folders tried."""
    folders = list(dict.fromkeys(candidates))
    names = [str(image["file_name"]) for image in file.images[:50]]
    for folder in folders:
        if locate_files(folder, names)[0]:
            return folder
    tried = ", ".join(str(folder) for folder in folders)
    raise DataError(
        f"{file.path}: none of its images was found (the first is '{names[0]}'), searched {tried}; "
        "put the images into one of these folders"
    )


def _check_file_kind(path: Path, content: Any) -> None:
    expected = "expected a COCO instances file with 'images', 'annotations' and 'categories'"
    if isinstance(content, list):
        raise DataError(f"{path}: a list, as in files of predictions (COCO results); {expected}")
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a COCO file, {expected}")
    annotations = content.get("annotations")
    first_rows = annotations[:100] if isinstance(annotations, list) else []
    rows = [row for row in first_rows if isinstance(row, dict)]
    for key, name in (("caption", "captions"), ("segments_info", "panoptic segments"), ("keypoints", "keypoints")):
        if any(key in row and "bbox" not in row for row in rows):
            raise DataError(f"{path}: a file of {name} whose annotations have no 'bbox'; {expected}")
    missing = [table for table in REQUIRED_KEYS if not isinstance(content.get(table), list)]
    if missing:
        raise DataError(f"{path}: has no list {' and no list '.join(map(repr, missing))}; {expected}")
    for table in ("images", "categories"):
        if not content[table]:
            raise DataError(f"{path}: the list '{table}' is empty, {expected}")


def _check_rows(path: Path, table: str, rows: Sequence[Any]) -> list[Problem]:
    faults = []
    for number, row in enumerate(rows):
        name = f"{table}[{number}]"
        if not isinstance(row, dict):
            faults.append(Problem(path, name, "is not a JSON object", "refused"))
            continue
        lacking = [key for key in REQUIRED_KEYS[table] if row.get(key) is None]
        if lacking:
            faults.append(Problem(path, name, f"has no {', '.join(map(repr, lacking))}", "refused"))
        elif not _has_valid_types(row):
            faults.append(Problem(path, name, "has an id, size or name of the wrong type or out of range", "refused"))
    return faults


def _has_valid_types(row: dict[str, Any]) -> bool:
    ids = [row[key] for key in ("id", "image_id", "category_id") if key in row]
    sides = [row[key] for key in ("height", "width") if key in row and "file_name" in row]
    texts = [row[key] for key in ("file_name", "name") if key in row]
    return (
        all(type(item) in (int, str) for item in ids)
        and all(type(side) is int and 0 < side <= MAX_SIDE for side in sides)
        and all(isinstance(text, str) for text in texts)
    )


def _find_duplicates(file: CocoFile) -> list[Problem]:
    values_of = (
        ("image id", [str(image["id"]) for image in file.images]),
        ("image file", [image["file_name"] for image in file.images]),
        ("annotation id", [str(row["id"]) for row in file.annotations]),
        ("category id", [row["id"] for row in file.categories]),
        ("category name", [row["name"] for row in file.categories]),
    )
    return [
        Problem(file.path, f"{name} '{value}'", f"occurs {count} times, expected once", "refused")
        for name, values in values_of
        for value, count in Counter(values).items()
        if count > 1
    ]


def _find_dangling_references(file: CocoFile) -> list[Problem]:
    images = {image["id"] for image in file.images}
    categories = {category["id"] for category in file.categories}
    return [
        Problem(file.path, f"annotation {row['id']}", f"refers to the unknown {name} {row[key]!r}", "refused")
        for row in file.annotations
        for key, name, known in (("image_id", "image", images), ("category_id", "category", categories))
        if row[key] not in known
    ]
