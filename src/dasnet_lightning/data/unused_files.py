"""Search for files in a data folder that look like data and that neither split uses: a third split, masks, pictures."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dasnet_lightning.data.records import MaskState, Problem, Source
from dasnet_lightning.data.sources.checks import join_names
from dasnet_lightning.data.sources.coco_json import is_instances, read_json
from dasnet_lightning.data.sources.coco_layout import IMAGE_SUFFIXES
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.errors import DataError

SHOWN = 3  # names in one message
RUN_FILE = "run.json"  # a folder with this file is a run, not data
MASK_FOLDER = re.compile(r"segmentation|masks?\b|^inst", re.IGNORECASE)


def list_problems(data: DataSet) -> tuple[Problem, ...]:
    """Return all problems of a data set and of its splits, and its unused files, each once."""
    problems = (*data.train.problems, *data.val.problems, *data.problems, *find_unused_files(data))
    return tuple({str(problem): problem for problem in problems}.values())  # both splits may report the same file


def find_unused_files(data: DataSet) -> tuple[Problem, ...]:
    """Return a problem with the action "unused" for each group of unused files; opens no picture.

    Only a data set that is a folder is searched. Whoever passes a single file has chosen what to use.
    """
    if not data.root.is_dir():
        return ()
    files = list(_walk(data.root))
    sources = (data.train, data.val)
    groups = _group_pictures(data.root, files, sources)
    problems = [
        Problem(
            data.root / folder, f"{len(names)} {kind}", f"not used, the first: {join_names(names[:SHOWN])}", "unused"
        )
        for (folder, kind), names in sorted(groups.items())
    ]
    return (*_unused_annotations(files, sources), *_unused_lists(data.root, files, sources), *problems)


def _walk(root: Path) -> Iterator[Path]:
    """Yield all files below a folder, sorted, without hidden ones and without the folders of runs."""
    for folder, folders, names in os.walk(root):
        if RUN_FILE in names and Path(folder) != root:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _group_pictures(root: Path, files: Sequence[Path], sources: Sequence[Source]) -> dict[tuple[str, str], list[str]]:
    """Return the names of unused pictures, masks and VOC annotations by top folder and kind."""
    records = [record for source in sources for record in source.records]
    used = {os.path.abspath(record.path) for record in records}  # noqa: PTH100 (keeps links)
    stems = {record.path.stem for record in records}
    # without an object there is nothing to cut out of a mask file
    with_masks = {
        record.path.stem
        for record in records
        if not record.objects or any(item.mask is not MaskState.ABSENT for item in record.objects)
    }
    groups: dict[tuple[str, str], list[str]] = {}
    for path in files:
        folder = path.parent.relative_to(root)
        kind = ""
        if path.suffix.lower() in IMAGE_SUFFIXES and os.path.abspath(path) not in used:  # noqa: PTH100
            kind = "pictures that no annotation in use names"
            if any(MASK_FOLDER.search(part) for part in folder.parts):
                kind = "mask files of images whose masks were not read" if path.stem in stems else ""
                kind = kind or "mask files without an image in use"
                kind = "" if path.stem in with_masks else kind
        elif path.suffix.lower() == ".xml" and "Annotations" in folder.parts and path.stem not in stems:
            kind = "annotation files of images that no list names"
        if kind:
            groups.setdefault((folder.parts[0] if folder.parts else ".", kind), []).append(path.name)
    return groups


def _unused_annotations(files: Sequence[Path], sources: Sequence[Source]) -> list[Problem]:
    """Return a problem for each COCO file that no split reads."""
    used = {os.path.abspath(file) for source in sources for file in source.files}  # noqa: PTH100
    problems = []
    for path in files:
        if not used or path.suffix.lower() != ".json" or os.path.abspath(path) in used:  # noqa: PTH100
            continue
        try:
            content = read_json(path)
        except DataError:
            continue
        if is_instances(content):
            counts = f"{len(content['images'])} images with {len(content['annotations'])} labels"
            problems.append(Problem(path, counts, "not used, neither for training nor for validation", "unused"))
    return problems


def _unused_lists(root: Path, files: Sequence[Path], sources: Sequence[Source]) -> list[Problem]:
    """Return a problem for each VOC list whose images are in no split, unless a longer list has named them."""
    known = {record.image_id for source in sources for record in source.records}
    lists = [path for path in files if path.suffix == ".txt" and path.relative_to(root).parts[0] == "ImageSets"]
    entries = {path: _read_first_words(path) - known for path in lists}
    problems = []
    for path, ids in sorted(entries.items(), key=lambda item: (-len(item[1]), item[0])):
        if ids - known:
            shown = join_names(sorted(ids)[:SHOWN])
            problems.append(Problem(path, f"{len(ids)} images", f"in no split, the first: {shown}", "unused"))
        known |= ids
    return problems


def _read_first_words(path: Path) -> set[str]:
    """Return the image ids of a list, whose lines may have a flag after the id."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.split()[0] for line in lines if line.strip()}
