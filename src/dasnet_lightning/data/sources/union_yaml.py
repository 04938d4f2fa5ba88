"""The YAML file that lists the parts of a data set: what it may say, and clear words for everything else.

    train:
      - {root: VOCdevkit/VOC2012, split: trainval}
      - {root: benchmark_RELEASE/dataset, split: all, expect: 11355}
    val:
      - {root: VOCdevkit/VOC2012, split: val, list: Segmentation}

Paths are relative to the file, or to its `root`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from dasnet_lightning.data.sources.voc_xml import LISTS
from dasnet_lightning.errors import DataError

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 1_000_000
SPLITS = ("train", "val")


@dataclass(frozen=True)
class PartSpec:
    """One part: a split of a data set. `place` names it in messages.

    lists: where VOC's list lies. masks: whether its masks may be used. voc_classes: keep VOC's classes of a COCO file.
    keep_empty: of such a file, also the images that show none of them. expect: the number of its images, None for any.
    """

    place: str
    root: Path
    split: str | None = None
    lists: tuple[str, ...] = LISTS
    masks: bool = True
    voc_classes: bool = False
    keep_empty: bool = False
    expect: int | None = None


@dataclass(frozen=True)
class UnionSpec:
    """A whole file. keep_val_images: images of the validation may stay in the training. expect: images of each split."""

    file: Path
    root: Path
    train: tuple[PartSpec, ...]
    val: tuple[PartSpec, ...]
    keep_val_images: bool
    expect: Mapping[str, int]


_KEYS = {"root": str, "train": list, "val": list, "val_images_in_train": ("exclude", "keep"), "expect": dict}
_PART_KEYS = {
    "root": str, "split": str, "list": LISTS, "masks": bool, "classes": ("voc",), "empty": ("drop", "keep"), "expect": int
}  # fmt: skip
_KINDS = {str: "text", list: "a list", dict: "a table", bool: "true or false", int: "a number from 0"}


def read_union(file: Path) -> UnionSpec:
    """Read a list of parts. Raises DataError that names the file, the part and the key."""
    content = _read_yaml(file)
    _check_kind(file, content)
    _check_keys(f"{file}", content, _KEYS)
    expect = content.get("expect", {})
    _check_keys(f"{file}: expect", expect, dict.fromkeys(SPLITS, int))
    root = file.parent / Path(content.get("root", ".")).expanduser()
    train, val = (tuple(_read_parts(file, root, split, content.get(split, []))) for split in SPLITS)
    if not train:
        raise DataError(f"{file}: lists no part under 'train', expected at least one")
    return UnionSpec(file, root, train, val, content.get("val_images_in_train") == "keep", expect)


def _read_yaml(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file}: is larger than {MAX_BYTES} bytes, expected a short list of parts")
        text = file.read_text(encoding="utf-8-sig")
        _check_twice(file, yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise DataError(f"{file}: cannot be read as YAML ({reason})") from error


def _check_twice(file: Path, node: yaml.Node | None) -> None:
    """Raise DataError for a key that a table has twice, of which YAML would keep the last in silence."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            line = node.start_mark.line + 1
            raise DataError(f"{file}: the table at line {line} has the key '{twice[0]}' twice, keep one")
        for _, value in node.value:
            _check_twice(file, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_twice(file, value)


def _check_kind(file: Path, content: Any) -> None:
    expected = "expected a data set as a list of parts, with the keys 'train' and 'val'"
    if not isinstance(content, dict):
        raise DataError(f"{file}: is no table, {expected}")
    if "names" in content or "nc" in content:
        raise DataError(f"{file}: describes a YOLO data set, not supported yet, convert it to COCO; {expected}")
    if "trainer" in content or "model" in content:
        raise DataError(f"{file}: is a configuration for 'dasnet fit --config', not a data set; {expected}")


def _check_keys(place: str, table: Mapping[Any, Any], known: Mapping[str, Any]) -> None:
    """Raise DataError for keys that do not exist, with the nearest that does, and for values of the wrong kind."""
    for key, value in table.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'? Known" if near else "known"
            raise DataError(f"{place}: no key is called '{key}', {hint}: {', '.join(known)}")
        kind = known[key]
        if isinstance(kind, tuple):
            if value not in kind:
                raise DataError(f"{place}: '{key}' is {value!r}, expected {' or '.join(kind)}")
        elif not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)):
            raise DataError(f"{place}: '{key}' is {value!r}, expected {_KINDS[kind]}")


def _read_parts(file: Path, root: Path, split: str, rows: Sequence[Any]) -> list[PartSpec]:
    parts = []
    for number, row in enumerate(rows, start=1):
        place = f"{file}: {split}, part {number}"
        if not isinstance(row, dict):
            raise DataError(
                f"{place}: is {row!r}, expected a table such as {{root: VOCdevkit/VOC2012, split: trainval}}"
            )
        _check_keys(place, row, _PART_KEYS)
        if "root" not in row:
            raise DataError(f"{place}: has no 'root', expected the folder of a data set")
        parts.append(_read_part(place, root, row))
    return parts


def _read_part(place: str, root: Path, row: Mapping[str, Any]) -> PartSpec:
    if "empty" in row and "classes" not in row:
        raise DataError(f"{place}: 'empty' goes with 'classes: voc', which leaves images without objects")
    return PartSpec(
        place=place,
        root=root / Path(row["root"]).expanduser(),
        split=row.get("split"),
        lists=(row["list"],) if "list" in row else LISTS,
        masks=row.get("masks", True),
        voc_classes="classes" in row,
        keep_empty=row.get("empty") == "keep",
        expect=row.get("expect"),
    )
