"""Search for files in a data folder that look like data and that no split uses: label files, masks, pictures, lists.

This is the one place that reports them, for every format, with one message for each group of files.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dasnet_lightning.data.label_file_kinds import describe_json, describe_xml
from dasnet_lightning.data.records import MaskState, Problem, Source
from dasnet_lightning.data.sources.checks import join_names
from dasnet_lightning.data.sources.coco_layout import IMAGE_SUFFIXES
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.data.sources.voc_lists import read_list
from dasnet_lightning.errors import DataError

SHOWN = 3  # names in one message
RUN_FILE = "run.json"  # a folder with this file is a run, not data
MASK_FOLDER = re.compile(r"segmentation|masks?\b|^inst", re.IGNORECASE)

Groups = dict[tuple[str, str], list[str]]  # names of files by top folder and kind


def list_problems(data: DataSet) -> tuple[Problem, ...]:
    """Return all problems of a data set and of its splits, and its unused files, each once."""
    of_splits = (problem for source in data.sources.values() for problem in source.problems)
    problems = (*of_splits, *data.problems, *find_unused_files(data))
    return tuple({str(problem): problem for problem in problems}.values())  # several splits may report the same file


def find_unused_files(data: DataSet) -> tuple[Problem, ...]:
    """Return a problem with the action "unused" for each group of unused files; opens no picture.

    Only a data set that is a folder is searched. Whoever passes a single file has chosen what to use.
    """
    if not data.root.is_dir():
        return ()
    sources = tuple(data.sources.values())
    # a label file that cannot be used at all is a problem of its own
    refused = {item.file for source in sources for item in source.problems} | {item.file for item in data.problems}
    known = {_absolute(path) for path in (*data.noted, *refused)}
    known |= {_absolute(path) for source in sources for path in source.files}
    files = [path for path in _walk(data.root) if _absolute(path) not in known]
    groups = _group_pictures(data, files)
    single = []
    for path in files:
        kind, contents = _describe_labels(path)
        if contents:
            single.append(
                Problem(path, contents, "not used, neither for training nor for validation or test", "unused")
            )
        elif kind:
            groups.setdefault((_top(data.root, path), kind), []).append(path.name)
    problems = [
        Problem(
            data.root / folder, f"{len(names)} {kind}", f"not used, the first: {join_names(names[:SHOWN])}", "unused"
        )
        for (folder, kind), names in sorted(groups.items())
    ]
    return (*single, *_unused_lists(data.root, files, sources), *problems)


def _walk(root: Path) -> Iterator[Path]:
    """Yield all files below a folder, sorted, without hidden ones and without the folders of runs."""
    for folder, folders, names in os.walk(root):
        if RUN_FILE in names and Path(folder) != root:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (keeps links)


def _top(root: Path, path: Path) -> str:
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else "."


def _group_pictures(data: DataSet, files: Sequence[Path]) -> Groups:
    """Return the names of unused pictures and masks."""
    records = [record for source in data.sources.values() for record in source.records]
    used = {_absolute(record.path) for record in records}
    ids, stems = {record.image_id for record in records}, {record.path.stem for record in records}
    # without an object there is nothing to cut out of a mask file
    masked = [
        record
        for record in records
        if not record.objects or any(item.mask is not MaskState.ABSENT for item in record.objects)
    ]
    masked_ids, masked_stems = {record.image_id for record in masked}, {record.path.stem for record in masked}
    groups: Groups = {}
    for path in files:
        if path.suffix.lower() not in IMAGE_SUFFIXES or _absolute(path) in used:
            continue
        kind, folders = "pictures that no annotation in use names", path.parent.relative_to(data.root).parts
        places = [place for place, part in enumerate(folders) if MASK_FOLDER.search(part)]
        if places:
            below = path.relative_to(data.root.joinpath(*folders[: places[-1] + 1])).with_suffix("").as_posix()
            flat = "/" not in below
            if below in masked_ids or (flat and below in masked_stems):
                continue
            of_image = below in ids or (flat and below in stems)
            kind = f"mask files {'of images whose masks were not read' if of_image else 'without an image in use'}"
        groups.setdefault((_top(data.root, path), kind), []).append(path.name)
    return groups


def _describe_labels(path: Path) -> tuple[str, str]:
    """Return what kind of label file a file is, and what it contains if it describes several images; "" if unknown."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        return describe_json(path)
    if suffix == ".xml":
        return describe_xml(path)
    if suffix != ".txt":
        return "", ""
    beside = any(path.with_suffix(image_suffix).is_file() for image_suffix in IMAGE_SUFFIXES)
    return ("YOLO label files" if beside or "labels" in path.parent.parts[-2:] else ""), ""


def _unused_lists(root: Path, files: Sequence[Path], sources: Sequence[Source]) -> list[Problem]:
    """Return a problem for each VOC list whose images are in no split, unless a longer list has named them."""
    known = {record.image_id for source in sources for record in source.records}
    lists = [path for path in files if path.suffix == ".txt" and path.relative_to(root).parts[0] == "ImageSets"]
    entries = {path: _read_ids(path, known) - known for path in lists}
    problems = []
    for path, ids in sorted(entries.items(), key=lambda item: (-len(item[1]), item[0])):
        if ids - known:
            shown = join_names(sorted(ids)[:SHOWN])
            problems.append(Problem(path, f"{len(ids)} images", f"in no split, the first: {shown}", "unused"))
        known |= ids
    return problems


def _read_ids(path: Path, known: set[str]) -> set[str]:
    try:
        return set(read_list(path, known))
    except DataError:
        return set()
