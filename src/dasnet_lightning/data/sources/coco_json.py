"""Reading of COCO JSON files: the kind of file and the consistency of its records."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import RecordsError
from dasnet_lightning.data.sources.coco_categories import clean_categories
from dasnet_lightning.data.sources.coco_values import (
    Conversions,
    convert,
    is_unknown_side,
    to_flag,
    to_id,
    to_name,
    to_side,
)
from dasnet_lightning.errors import DataError

REQUIRED_KEYS = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}
ID = "an id (a whole number or text)"
FIELDS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "id": (to_id, ID),
    "image_id": (to_id, ID),
    "category_id": (to_id, ID),
    "name": (to_name, "text"),
    "file_name": (lambda value: value if isinstance(value, str) else None, "text"),
    "iscrowd": (to_flag, "0 or 1"),
    "height": (to_side, "a number of pixels"),
    "width": (to_side, "a number of pixels"),
}
WRITTEN_AS = {float: "floats", int: "numbers", bool: "true or false", list: "lists"}
OPTIONAL_KEYS: Mapping[str, tuple[str, ...]] = {
    "images": ("height", "width"),
    "annotations": ("iscrowd",),
    "categories": (),
}


@dataclass(frozen=True, eq=False)
class CocoFile:
    """The three tables of an instances file; ids are unique, and every reference is valid.

    Attributes:
        path: the file.
        images: rows with id and file_name; height and width may be missing.
        annotations: rows with id, image_id and category_id; iscrowd is 0 or 1 if it is there.
        categories: rows with id and name.
        notes: warnings that count the values and categories that were converted.
        files: the files that the tables were joined from; empty for `path` alone.
        image_folder: folder of the images of our own predictions, relative to the file; "" in other files.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    notes: tuple[Problem, ...] = ()
    files: tuple[Path, ...] = ()
    image_folder: str = ""


def read_coco(path: Path) -> CocoFile:
    """Read an instances file. Raises DataError that names another kind of file, or lists the invalid records."""
    content = read_json(path)
    _check_file_kind(path, content)
    conversions = Conversions()
    tables, faults = {}, []
    for table in REQUIRED_KEYS:
        tables[table], table_faults = _read_rows(path, table, content[table], conversions)
        faults += table_faults
    if faults:
        raise RecordsError(faults, f"{len(faults)} records are incomplete; export the file again or correct them.")
    annotations = _match_references(tables["annotations"], tables["images"], "image_id", conversions)
    annotations = _match_references(annotations, tables["categories"], "category_id", conversions)
    categories, notes = clean_categories(path, tables["categories"], annotations)
    notes += conversions.problems(path)
    folder = _find_image_folder(content.get("info"))
    file = CocoFile(path, tables["images"], annotations, categories, tuple(notes), image_folder=folder)
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


def _find_image_folder(info: Any) -> str:
    """Return the image folder that `dasnet segment` writes into `info`; "" if it is missing or absolute."""
    folder = info.get("image_folder") if isinstance(info, dict) else None
    return folder if isinstance(folder, str) and not PurePosixPath(folder).is_absolute() else ""


def _read_rows(
    path: Path, table: str, rows: Sequence[Any], conversions: Conversions
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the rows of a table with converted values, and a problem for each row that cannot be used."""
    required = REQUIRED_KEYS[table]
    if table == "annotations" and rows and all(isinstance(row, dict) and row.get("id") is None for row in rows):
        rows = [{**row, "id": number} for number, row in enumerate(rows, start=1)]
        conversions.counts[table, "annotations without ids were numbered in the order of the file"] += len(rows)
    converted, faults = [], []
    for number, row in enumerate(rows):
        name = f"{table}[{number}]"
        if not isinstance(row, dict):
            faults.append(Problem(path, name, "is not a JSON object", "refused"))
            continue
        lacking = [key for key in required if row.get(key) is None]
        if lacking:
            faults.append(Problem(path, name, f"has no {', '.join(map(repr, lacking))}", "refused"))
            continue
        new_row, messages = _read_row(table, row, conversions)
        faults += [Problem(path, name, message, "refused") for message in messages]
        converted.append(new_row)
    return converted, faults


def _read_row(table: str, row: dict[str, Any], conversions: Conversions) -> tuple[dict[str, Any], list[str]]:
    """Return a row with converted values, and a message for each value that cannot be used."""
    changes: dict[str, Any] = {}
    messages = []
    for key in (*REQUIRED_KEYS[table], *(key for key in OPTIONAL_KEYS[table] if key in row)):
        if key in ("height", "width") and is_unknown_side(row[key]):
            changes[key] = None
            continue
        function, expected = FIELDS[key]
        value, message = convert(row, key, function, expected)
        if message:
            messages.append(message)
        elif type(value) is not type(row[key]) or value != row[key]:
            changes[key] = value
            if row[key] is not None:
                written = WRITTEN_AS.get(type(row[key]), "text")
                conversions.count(table, f"values of '{key}' are written as {written} and were read as {expected}")
    return ({**row, **changes} if changes else row), messages


def _match_references(
    annotations: list[dict[str, Any]], rows: Sequence[Mapping[str, Any]], key: str, conversions: Conversions
) -> list[dict[str, Any]]:
    """Return the annotations with references that differ from an id only by being text or a number corrected."""
    known = {row["id"] for row in rows}
    if all(row[key] in known for row in annotations):
        return annotations
    by_text = {str(row["id"]): row["id"] for row in rows}
    matched = []
    for row in annotations:
        if row[key] not in known and str(row[key]) in by_text:
            row = {**row, key: by_text[str(row[key])]}
            conversions.count("annotations", f"values of '{key}' differ from the ids by being text or number, matched")
        matched.append(row)
    return matched


def _find_duplicates(file: CocoFile) -> list[Problem]:
    values_of = (
        ("image id", [str(image["id"]) for image in file.images]),
        ("image file", [image["file_name"] for image in file.images]),
        ("annotation id", [str(row["id"]) for row in file.annotations]),
        ("category id", [str(row["id"]) for row in file.categories]),
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
