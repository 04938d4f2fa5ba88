"""Detection of the format of a data set and its opening with a training and a validation split.

Files with a mark of their own come first (YOLO, labelme, CVAT, Label Studio), then VOC, SBD and COCO by their folders. A YAML
file joins several VOC, SBD and COCO data sets. If nothing matches, the error lists what the folder contains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from dasnet_lightning.data.pixels import ImageRange, find_image_range
from dasnet_lightning.data.records import Problem, Source
from dasnet_lightning.data.sources.checks import Fix, RecordsError, join_names, parse_object
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.coco_images import choose_image_root
from dasnet_lightning.data.sources.coco_json import CocoFile, read_coco
from dasnet_lightning.data.sources.coco_layout import CocoLayout, describe_folder, image_folders
from dasnet_lightning.data.sources.coco_per_image import find_coco_per_image, open_coco_per_image
from dasnet_lightning.data.sources.coco_spellings import find_coco_layout, list_unused_tests, spelled_folders
from dasnet_lightning.data.sources.sbd import SBDSource, find_sbd_root, list_sbd_splits
from dasnet_lightning.data.sources.selection import Selection, count_crowd
from dasnet_lightning.data.sources.shape_data import ShapeData, build_sources
from dasnet_lightning.data.sources.shape_formats import find_marked, find_unmarked
from dasnet_lightning.data.sources.union import open_union
from dasnet_lightning.data.sources.union_yaml import SUFFIXES, read_union
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.data.sources.voc_lists import list_splits
from dasnet_lightning.data.sources.voc_xml import find_voc_root, find_voc_roots
from dasnet_lightning.data.sources.yolo import find_yolo
from dasnet_lightning.data.validation_split import choose_validation
from dasnet_lightning.errors import ConfigError, DataError

OTHER_FORMATS = "YOLO (data.yaml), labelme, CVAT and Label Studio files and VOC XML files beside images are read too"

Crowd = Literal["ignore", "object"]

SourceBuilder = Callable[[Sequence[str] | None], Source]  # class names (None: those of the files) -> source


@dataclass(frozen=True, eq=False)
class DataSet:
    """Data set with two splits of the same classes.

    Attributes:
        train: the training split.
        val: the validation split.
        format: "voc", "sbd", "coco", "union", "yolo", "labelme", "cvat" or "label_studio".
        root: folder or file of the data set.
        problems: problems of both splits together; those of one split are in its source.
    """

    train: Source
    val: Source
    format: str
    root: Path
    problems: tuple[Problem, ...] = ()

    @cached_property
    def image_range(self) -> ImageRange | None:
        """Range of the images of more than 8 bits, found on first use; None if there are none."""
        return find_image_range([record.path for split in (self.train, self.val) for record in split.records])


def open_dataset(path: Path | str, allow_missing: bool = False, fix: Fix = "error", crowd: Crowd = "ignore") -> DataSet:
    """Detect the format of a data set and read its records.

    If the data set has no validation split, a fifth of its images becomes one (see `choose_validation`); a problem reports
    this.

    Args:
        path: a folder, one label file, or a YAML list of parts.
        allow_missing: leave out images whose file is missing and report them as problems.
        fix: "drop" leaves out objects that cannot be used and reports them as problems.
        crowd: "ignore" neither trains nor evaluates crowd and difficult objects, "object" treats them as ordinary objects.

    Raises:
        ConfigError: `crowd` has another value.
        DataError: the format is unknown, or something cannot be used and no option accepts it.
    """
    if crowd not in get_args(Crowd):
        raise ConfigError(f"crowd is '{crowd}', expected one of {', '.join(get_args(Crowd))}")
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"{root}: does not exist, expected the folder or the file of a data set")
    data = _open_any(root, allow_missing, fix)
    for source in (data.train, data.val):
        _require_images(source, root)
    data = _warn_about_overlap(data)
    return data if crowd == "ignore" else replace(data, train=count_crowd(data.train), val=count_crowd(data.val))


def _open_any(root: Path, allow_missing: bool, fix: Fix) -> DataSet:
    if root.is_file() and root.suffix.lower() in SUFFIXES:
        yolo = find_yolo(root)
        return _open_shapes(yolo, allow_missing, fix) if yolo else _open_union(root, allow_missing, fix)
    shapes = find_marked(root)
    if shapes is not None:
        return _open_shapes(shapes, allow_missing, fix)
    if root.is_dir() and find_voc_roots(root):
        return _open_voc(find_voc_root(root), allow_missing, fix)
    sbd_root = find_sbd_root(root) if root.is_dir() else None
    if sbd_root is not None:
        return _open_sbd(sbd_root, allow_missing, fix)
    return _open_json(root, allow_missing, fix)


def _open_json(root: Path, allow_missing: bool, fix: Fix) -> DataSet:
    """Open COCO files in their layouts, or files of other tools that only their contents tell apart."""
    contents = find_coco_per_image(root)
    if contents is not None:
        return _assemble(open_coco_per_image(root, contents, allow_missing, fix), "coco", root, root)
    layout = find_coco_layout(root)
    if layout is not None:
        data = _open_coco(root, layout, allow_missing, fix)
        return replace(data, problems=(*data.problems, *list_unused_tests(root)))
    shapes = find_unmarked(root)
    if shapes is None:
        raise DataError(f"{describe_folder(root)}; {OTHER_FORMATS}")
    return _open_shapes(shapes, allow_missing, fix)


def _open_shapes(data: ShapeData, allow_missing: bool, fix: Fix) -> DataSet:
    return _assemble(build_sources(data, allow_missing, fix), data.format, data.root, data.file)


def _assemble(
    sources: tuple[Source, Source | None, tuple[Problem, ...]], data_format: str, root: Path, file: Path
) -> DataSet:
    train, val, problems = sources
    if val is not None:
        return DataSet(train, val, data_format, root, problems)
    data = _split_by_hash(train, data_format, root, file)
    return replace(data, problems=(*problems, *data.problems))


def _open_voc(root: Path, allow_missing: bool, fix: Fix) -> DataSet:
    splits = list_splits(root)
    if not splits:
        raise DataError(f"{root}: VOC folder without lists, expected ImageSets/Main/train.txt and val.txt")
    if not {"train", "val"} <= set(splits):
        single = next((name for name in ("trainval", "train", "default") if name in splits), None)
        if single is None:
            raise DataError(
                f"{root}: has the lists {join_names(list(splits))}, expected ImageSets/Main/train.txt and val.txt"
            )
        source = VOCSource(root, single, allow_missing=allow_missing, fix=fix)
        return _split_by_hash(source, "voc", root, splits[single])

    def build(split: str, class_names: Sequence[str] | None) -> Source:
        return VOCSource(root, split, class_names=class_names, allow_missing=allow_missing, fix=fix)

    train, val = _with_same_classes(lambda names: build("train", names), lambda names: build("val", names))
    return DataSet(train, val, "voc", root)


def _open_sbd(root: Path, allow_missing: bool, fix: Fix) -> DataSet:
    splits = list_sbd_splits(root)
    if {"train", "val"} <= set(splits):
        train, val = (SBDSource(root, split, allow_missing=allow_missing, fix=fix) for split in ("train", "val"))
        return DataSet(train, val, "sbd", root)
    if "train" not in splits:
        raise DataError(f"{root}: SBD folder without lists, expected train.txt and val.txt")
    source = SBDSource(root, "train", allow_missing=allow_missing, fix=fix)
    return _split_by_hash(source, "sbd", root, splits["train"][0])


def _open_union(file: Path, allow_missing: bool, fix: Fix) -> DataSet:
    return _assemble(open_union(read_union(file), allow_missing, fix), "union", file, file)


def _open_coco(root: Path, layout: CocoLayout, allow_missing: bool, fix: Fix) -> DataSet:
    def builder(file: Path) -> SourceBuilder:
        content: CocoFile = read_coco(file)
        folders = [*image_folders(file, root), *spelled_folders(file, root)]
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
    train, val = _with_same_classes(builder(layout.train), builder(layout.val))
    return DataSet(train, val, "coco", root)


def _with_same_classes(build_train: SourceBuilder, build_val: SourceBuilder) -> tuple[Source, Source]:
    """Build both splits with the same labels: the classes of train first, then those that only val has."""
    train, val = build_train(None), build_val(None)
    if train.class_names == val.class_names:
        return train, val
    names = tuple(dict.fromkeys((*train.class_names, *val.class_names)))
    return build_train(names), build_val(names)


def _split_by_hash(source: Source, data_format: str, root: Path, file: Path) -> DataSet:
    """Reserve a fifth of the images for validation."""
    _require_images(source, file)
    val_ids, count = choose_validation(source.records), len(source.records)
    if not 0 < len(val_ids) < count:
        raise DataError(
            f"{file}: has no validation split and only {count} images, too few to reserve some for validation; "
            "add images or a validation split"
        )
    train_records = [record for record in source.records if record.image_id not in val_ids]
    val_records = [record for record in source.records if record.image_id in val_ids]
    message = (
        f"no validation split was found, {len(val_ids)} of {count} images, chosen by the hash of their ids, serve as one; "
        f"{sum(record.has_masks for record in val_records)} of them have annotated masks"
    )
    # all problems stay with train, so that each refused label is counted once
    return DataSet(
        train=Selection(source, train_records, source.problems),
        val=Selection(source, val_records, ()),
        format=data_format,
        root=root,
        problems=(Problem(file, "validation", message, "warning"),),
    )


def _require_images(source: Source, file: Path) -> None:
    """Raise an error that names the missing images if no image of a split is left."""
    if source.records:
        return
    refused = [problem for problem in source.problems if problem.action == "refused"]
    images = [problem for problem in refused if parse_object(problem.record) is None]
    if not images:
        raise DataError(f"{file}: a split has no image, add some or remove its list")
    raise RecordsError(images, f"None of the {len(images)} images of a split can be used; restore the image files.")


def _warn_about_overlap(data: DataSet) -> DataSet:
    """Add a warning if images are in both splits: the same file, or files of the same name and content."""
    train_paths = {record.path.absolute() for record in data.train.records}
    by_name: dict[str, list[Path]] = {}
    for record in data.train.records:
        by_name.setdefault(record.path.name, []).append(record.path)
    shared = [
        record.path.name
        for record in data.val.records
        if record.path.absolute() in train_paths
        or any(_same_content(record.path, other) for other in by_name.get(record.path.name, ()))
    ]
    if not shared:
        return data
    message = (
        f"{len(shared)} images are in both splits and make the evaluation too optimistic, remove them from one: "
        f"{join_names(shared)}"
    )
    return replace(data, problems=(*data.problems, Problem(data.root, "train and val", message, "warning")))


def _same_content(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()
