"""YAML file that lists the parts of a union of data sets, validated key by key.

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

from dasnet_lightning.data.sources.voc_lists import LISTS
from dasnet_lightning.errors import DataError

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 1_000_000
SPLITS = ("train", "val")

# type or accepted values of each key
_KEYS = {"root": str, "train": list, "val": list, "val_images_in_train": ("exclude", "keep"), "expect": dict}
_PART_KEYS = {
    "root": str, "split": str, "list": LISTS, "masks": bool, "classes": ("voc",), "empty": ("drop", "keep"), "expect": int
}  # fmt: skip
_TYPE_NAMES = {str: "text", list: "a list", dict: "a mapping", bool: "true or false", int: "an integer from 0"}


@dataclass(frozen=True)
class PartSpec:
    """One part of a union: a split of a data set.

    Attributes:
        location: file, split and number of the part, for messages.
        root: folder or file of the data set.
        split: name of the split; None if `root` is a file.
        lists: folders of ImageSets that may hold VOC's list.
        masks: whether its masks may be used.
        voc_classes: keep only VOC's classes of a COCO file.
        keep_empty: of such a file, also keep images that show none of these classes.
        expect: expected number of images; None for any.
    """

    location: str
    root: Path
    split: str | None = None
    lists: tuple[str, ...] = LISTS
    masks: bool = True
    voc_classes: bool = False
    keep_empty: bool = False
    expect: int | None = None


@dataclass(frozen=True)
class UnionSpec:
    """Content of a whole file.

    Attributes:
        file: the YAML file.
        root: folder that the roots of the parts are relative to.
        train: parts of the training split.
        val: parts of the validation split; may be empty.
        keep_val_images: keep validation images in the training split as well.
        expect: expected number of images of each split.
    """

    file: Path
    root: Path
    train: tuple[PartSpec, ...]
    val: tuple[PartSpec, ...]
    keep_val_images: bool
    expect: Mapping[str, int]


def read_union(file: Path) -> UnionSpec:
    """Read and validate a list of parts. Raises DataError that names the file, the part and the key."""
    content = _read_yaml(file)
    _check_file_kind(file, content)
    _check_keys(f"{file}", content, _KEYS)
    expect = content.get("expect", {})
    _check_keys(f"{file}: expect", expect, dict.fromkeys(SPLITS, int))
    root = file.parent / Path(content.get("root", ".")).expanduser()
    train, val = (tuple(_read_parts(file, root, split, content.get(split, []))) for split in SPLITS)
    if not train:
        raise DataError(f"{file}: 'train' lists no part, expected at least one")
    return UnionSpec(file, root, train, val, content.get("val_images_in_train") == "keep", expect)


def _read_yaml(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file}: larger than {MAX_BYTES} bytes, expected a short list of parts")
        text = file.read_text(encoding="utf-8-sig")
        _check_repeated_keys(file, yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise DataError(f"{file}: cannot be read as YAML ({reason})") from error


def _check_repeated_keys(file: Path, node: yaml.Node | None) -> None:
    """Raise DataError for a repeated key, of which YAML would silently keep the last."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        repeated = [key for key in keys if keys.count(key) > 1]
        if repeated:
            line = node.start_mark.line + 1
            raise DataError(f"{file}: the mapping at line {line} repeats the key '{repeated[0]}', keep one")
        for _, value in node.value:
            _check_repeated_keys(file, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_repeated_keys(file, value)


def _check_file_kind(file: Path, content: Any) -> None:
    expected = "expected a list of parts with the keys 'train' and 'val'"
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a mapping, {expected}")
    if "trainer" in content or "model" in content:
        raise DataError(f"{file}: a configuration for 'dasnet fit --config', not a data set; {expected}")


def _check_keys(location: str, mapping: Mapping[Any, Any], known: Mapping[str, Any]) -> None:
    """Raise DataError for an unknown key, with the closest known one, and for a value of the wrong type."""
    for key, value in mapping.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'? Known" if near else "known"
            raise DataError(f"{location}: unknown key '{key}', {hint} keys: {', '.join(known)}")
        expected = known[key]
        if isinstance(expected, tuple):
            if value not in expected:
                raise DataError(f"{location}: '{key}' is {value!r}, expected {' or '.join(expected)}")
        elif not isinstance(value, expected) or (expected is int and (isinstance(value, bool) or value < 0)):
            raise DataError(f"{location}: '{key}' is {value!r}, expected {_TYPE_NAMES[expected]}")


def _read_parts(file: Path, root: Path, split: str, rows: Sequence[Any]) -> list[PartSpec]:
    parts = []
    for number, row in enumerate(rows, start=1):
        location = f"{file}: {split}, part {number}"
        if not isinstance(row, dict):
            raise DataError(
                f"{location}: is {row!r}, expected a mapping such as {{root: VOCdevkit/VOC2012, split: trainval}}"
            )
        _check_keys(location, row, _PART_KEYS)
        if "root" not in row:
            raise DataError(f"{location}: has no 'root', expected the folder of a data set")
        parts.append(_read_part(location, root, row))
    return parts


def _read_part(location: str, root: Path, row: Mapping[str, Any]) -> PartSpec:
    if "empty" in row and "classes" not in row:
        raise DataError(
            f"{location}: 'empty' is only for 'classes: voc', which leaves images without objects; remove it"
        )
    return PartSpec(
        location=location,
        root=root / Path(row["root"]).expanduser(),
        split=row.get("split"),
        lists=(row["list"],) if "list" in row else LISTS,
        masks=row.get("masks", True),
        voc_classes="classes" in row,
        keep_empty=row.get("empty") == "keep",
        expect=row.get("expect"),
    )
