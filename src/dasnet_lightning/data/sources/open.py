"""Opens the user's data set, whatever its layout: VOC, SBD, COCO in one of the usual arrangements of folders, or a YAML
file that lists several of them as parts of one.

Where nothing fits, the error says where it looked, what it found, and what is missing.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dasnet_lightning.data.records import ImageRecord, Masks, Problem, Source
from dasnet_lightning.data.sources.checks import Fix
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.coco_json import CocoFile, choose_image_root, read_coco
from dasnet_lightning.data.sources.coco_layout import CocoLayout, describe_folder, find_coco, image_folders
from dasnet_lightning.data.sources.sbd import SBDSource, find_sbd_root, list_sbd_splits
from dasnet_lightning.data.sources.union import open_union
from dasnet_lightning.data.sources.union_yaml import SUFFIXES, read_union
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.data.sources.voc_xml import find_voc_root, find_voc_roots, list_splits
from dasnet_lightning.errors import DataError

VAL_SHARE = 0.2  # of a data set that comes without a validation split
LISTED = 20


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set with both splits, of the same classes; `problems` are about the two together, theirs are in the sources."""

    train: Source
    val: Source
    format: str
    root: Path
    problems: tuple[Problem, ...] = ()


class Selection:
    """Some images of a source, as a source: the problems stay with the whole."""

    def __init__(self, source: Source, records: Sequence[ImageRecord], problems: Sequence[Problem]) -> None:
        self.source = source
        self.class_names = source.class_names
        self.category_ids = source.category_ids
        self.records = tuple(records)
        self.problems = tuple(problems)
        self.root = source.root

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Open masks through the source that the images were selected from."""
        return self.source.load_masks(record, indices)


def open_dataset(path: Path | str, allow_missing: bool = False, fix: Fix = "error") -> DataSet:
    """Find out the format of a data set and read its records.

    path: a folder, one COCO file, or a YAML list of parts. allow_missing, fix: as in the sources. A data set without a
    validation split gives a fifth of its images, chosen by the hash of their ids, and says so in `problems`. Raises DataError.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"{root}: does not exist, expected a folder with a VOC, SBD or COCO data set, or a file")
    if root.is_file() and root.suffix.lower() in SUFFIXES:
        return _with_overlap(_open_union(root, allow_missing, fix))
    if root.is_dir() and find_voc_roots(root):
        return _with_overlap(_open_voc(find_voc_root(root), allow_missing, fix))
    sbd = find_sbd_root(root) if root.is_dir() else None
    if sbd is not None:
        return _with_overlap(_open_sbd(sbd, allow_missing, fix))
    layout = find_coco(root)
    if layout is None:
        raise DataError(describe_folder(root))
    return _with_overlap(_open_coco(root, layout, allow_missing, fix))


def _open_voc(root: Path, allow_missing: bool, fix: Fix) -> DataSet:
    splits = list_splits(root)
    if not splits:
        raise DataError(f"{root}: a VOC folder without lists, expected ImageSets/Main/train.txt and val.txt")
    alone = next((name for name in ("trainval", "train") if name in splits), None)
    if not {"train", "val"} <= set(splits):
        if alone is None:
            raise DataError(f"{root}: lists {', '.join(splits)}, expected ImageSets/Main/train.txt and val.txt")
        return _split_by_hash(VOCSource(root, alone, allow_missing=allow_missing, fix=fix), "voc", root, splits[alone])

    def build(split: str, class_names: Sequence[str] | None) -> Source:
        return VOCSource(root, split, class_names=class_names, allow_missing=allow_missing, fix=fix)

    return DataSet(*_same_classes(lambda names: build("train", names), lambda names: build("val", names)), "voc", root)


def _open_sbd(root: Path, allow_missing: bool, fix: Fix) -> DataSet:
    splits = list_sbd_splits(root)
    if {"train", "val"} <= set(splits):
        train, val = (SBDSource(root, split, allow_missing=allow_missing, fix=fix) for split in ("train", "val"))
        return DataSet(train, val, "sbd", root)
    if "train" not in splits:
        raise DataError(f"{root}: an SBD folder without lists, expected train.txt and val.txt")
    source = SBDSource(root, "train", allow_missing=allow_missing, fix=fix)
    return _split_by_hash(source, "sbd", root, splits["train"][0])


def _open_union(file: Path, allow_missing: bool, fix: Fix) -> DataSet:
    train, val, problems = open_union(read_union(file), allow_missing, fix)
    if val is None:
        data = _split_by_hash(train, "union", file, file)
        return DataSet(data.train, data.val, data.format, data.root, (*problems, *data.problems))
    return DataSet(train, val, "union", file, problems)


def _open_coco(root: Path, layout: CocoLayout, allow_missing: bool, fix: Fix) -> DataSet:
    def builder(file: Path) -> Callable[[Sequence[str] | None], COCOSource]:
        content: CocoFile = read_coco(file)
        folders = image_folders(file, root)
        if content.image_folder and root.is_file():
            folders = [file.parent / content.image_folder, *folders]
        elif content.image_folder and file.name == "predictions.json":  # beside it are drawings of the images
            raise DataError(f"{file}: holds predictions of images in another folder, name the file, not its folder")
        images = choose_image_root(content, folders)
        return lambda names: COCOSource(
            file, images, class_names=names, allow_missing=allow_missing, fix=fix, content=content
        )

    if layout.val is None:
        return _split_by_hash(builder(layout.train)(None), "coco", root, layout.train)
    return DataSet(*_same_classes(builder(layout.train), builder(layout.val)), "coco", root)


def _same_classes(
    train: Callable[[Sequence[str] | None], Source], val: Callable[[Sequence[str] | None], Source]
) -> tuple[Source, Source]:
    """Both splits with one mapping of labels: the classes of train first, then those that only val has."""
    first, second = train(None), val(None)
    if first.class_names == second.class_names:
        return first, second
    names = tuple(dict.fromkeys((*first.class_names, *second.class_names)))
    return train(names), val(names)


def _split_by_hash(source: Source, form: str, root: Path, file: Path) -> DataSet:
    """Keep a fifth of the images for validation: by the hash of their ids, so that added images move no other."""
    ranked = sorted(source.records, key=lambda record: _hash(record.image_id))
    count = round(VAL_SHARE * len(ranked))
    if count == 0 or count == len(ranked):
        raise DataError(f"{file}: has no validation split and only {len(ranked)} images, too few to keep some for it")
    kept = {record.image_id for record in ranked[:count]}
    train = [record for record in source.records if record.image_id not in kept]
    val = [record for record in source.records if record.image_id in kept]
    text = (
        f"no validation split was found: {count} of {len(ranked)} images, chosen by the hash of their ids, serve as one"
    )
    warning = Problem(file, "validation", text, "warning")
    # refused labels belong to one of the two; all stay with train so that each is counted once
    return DataSet(Selection(source, train, source.problems), Selection(source, val, ()), form, root, (warning,))


def _hash(image_id: str) -> tuple[bytes, str]:
    return hashlib.blake2b(image_id.encode(errors="surrogatepass"), digest_size=8).digest(), image_id


def _with_overlap(data: DataSet) -> DataSet:
    """Add a warning where images are in both splits: the same file, or one of the same name and content."""
    seen = {record.path.absolute() for record in data.train.records}
    named: dict[str, list[Path]] = {}
    for record in data.train.records:
        named.setdefault(record.path.name, []).append(record.path)
    both = [
        record.path.name
        for record in data.val.records
        if record.path.absolute() in seen
        or any(_equal(record.path, other) for other in named.get(record.path.name, ()))
    ]
    if not both:
        return data
    shown = ", ".join(both[:LISTED]) + (f" and {len(both) - LISTED} more" if len(both) > LISTED else "")
    text = f"{len(both)} images are in train and in val, the evaluation is too good by them: {shown}"
    warning = Problem(data.root, "train and val", text, "warning")
    return DataSet(data.train, data.val, data.format, data.root, (*data.problems, warning))


def _equal(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()
