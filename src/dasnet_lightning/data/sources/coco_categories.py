"""Categories of COCO files that are not classes: the background, and supercategories that exporters list as categories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import describe_renamed, join_names, rename_class

Rows = list[dict[str, Any]]


def clean_categories(path: Path, categories: Rows, annotations: Sequence[dict[str, Any]]) -> tuple[Rows, list[Problem]]:
    """Drop categories that are not classes, rename reserved names, and return a warning for each kind of change.

    A category without annotations is dropped if it is the background or if another category names it as its
    supercategory, as in exports of Roboflow.
    """
    used = {row["category_id"] for row in annotations}
    parents = _drop(categories, [row for row in categories if row["id"] not in used and _is_parent(row, categories)])
    background = _drop(parents, [row for row in parents if row["id"] not in used and _is_background(row["name"])])
    renamed = [{**row, "name": rename_class(row["name"])} for row in background]
    texts = (
        _describe_dropped("supercategories without annotations", categories, parents),
        _describe_dropped("the background, which has no annotations", parents, background),
        describe_renamed((old["name"], new["name"]) for old, new in zip(background, renamed, strict=True)),
    )
    notes = [Problem(path, "categories", text, "warning") for text in texts if text]
    return renamed, notes


def _drop(categories: Rows, dropped: Rows) -> Rows:
    """Return the categories without the dropped ones, or all if none would be left."""
    kept = [row for row in categories if not any(row is other for other in dropped)]
    return kept or categories


def _describe_dropped(reason: str, before: Rows, after: Rows) -> str:
    kept = {id(row) for row in after}
    names = [f"'{row['name']}' (id {row['id']})" for row in before if id(row) not in kept]
    return f"dropped {reason}: {join_names(names)}" if names else ""


def _is_parent(category: dict[str, Any], categories: Rows) -> bool:
    return any(row is not category and row.get("supercategory") == category["name"] for row in categories)


def _is_background(name: str) -> bool:
    return name.strip().casefold() == "background"
