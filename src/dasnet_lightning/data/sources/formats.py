"""Detection of the format of a data set, and reading of the splits that its files name.

Files with a mark of their own come first (YOLO, labelme, CVAT, Label Studio), then VOC, SBD and COCO by their folders. A YAML
file joins several data sets. If nothing matches, the error lists what the folder contains.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dasnet_lightning.data.records import Problem, Source
from dasnet_lightning.data.sources.checks import Fix, RecordsError, join_names
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.coco_images import choose_image_root
from dasnet_lightning.data.sources.coco_json import CocoFile, read_coco
from dasnet_lightning.data.sources.coco_layout import CocoLayout, describe_folder, image_folders
from dasnet_lightning.data.sources.coco_per_image import choose_splits, find_coco_per_image
from dasnet_lightning.data.sources.coco_spellings import find_coco_layout, spelled_folders
from dasnet_lightning.data.sources.sbd import SBDSource, find_sbd_root, list_sbd_splits
from dasnet_lightning.data.sources.shape_data import TEST, TRAIN, VAL, ShapeData, build_sources, build_test
from dasnet_lightning.data.sources.shape_formats import find_marked, find_unmarked
from dasnet_lightning.data.sources.union import open_union
from dasnet_lightning.data.sources.union_yaml import SUFFIXES, read_union
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.data.sources.voc_lists import list_splits
from dasnet_lightning.data.sources.voc_xml import find_voc_root, find_voc_roots
from dasnet_lightning.data.sources.yolo import find_yolo
from dasnet_lightning.errors import DataError

OTHER_FORMATS = "YOLO (data.yaml), labelme, CVAT and Label Studio files and VOC XML files beside images are read too"

SourceBuilder = Callable[[Sequence[str] | None], Source]  # class names (None: those of the files) -> source


@dataclass(frozen=True, eq=False)
class NamedSplits:
    """The splits that the files of a data set name.

    Attributes:
        format: see `DataSet`.
        root: folder or file of the data set.
        file: the file that messages about the whole data set name.
        train: the training split, or all images if the files name no split.
        val: the validation split, of the same classes; None if there is none.
        test: the test split, with classes of its own; None if there is none.
        problems: problems of no split.
        noted: files that a problem of no split counts already.
    """

    format: str
    root: Path
    file: Path
    train: Source
    val: Source | None = None
    test: Source | None = None
    problems: tuple[Problem, ...] = ()
    noted: frozenset[Path] = frozenset()


def open_splits(root: Path, allow_missing: bool, fix: Fix) -> NamedSplits:
    """Detect the format of the data set at an existing path and read its splits.

    A test split never stops a training: what cannot be used in it is reported.

    Args:
        root: a folder, one label file, or a YAML list of parts.
        allow_missing: leave out images whose file is missing and report them as problems.
        fix: "drop" leaves out objects that cannot be used and reports them as problems.

    Raises:
        DataError: the format is unknown, or something cannot be used and no option accepts it.
    """
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


def open_test(file: Path, build: Callable[[], Source]) -> tuple[Source | None, tuple[Problem, ...]]:
    """Build a test split. If that fails or leaves no image, return None and a warning that says why."""
    try:
        source = build()
    except DataError as error:
        reason = str(error.problems[0]) if isinstance(error, RecordsError) else str(error)
        return None, (Problem(file, "split 'test'", f"cannot be read: {reason}", "warning"),)
    if source.records:
        return source, ()
    return None, (Problem(file, "split 'test'", "has no image with a label file and is not used", "warning"),)


def _open_json(root: Path, allow_missing: bool, fix: Fix) -> NamedSplits:
    """Open COCO files in their layouts, or files of other tools that only their contents tell apart."""
    contents = find_coco_per_image(root)
    if contents is not None:
        return _open_coco_per_image(root, contents, allow_missing, fix)
    layout = find_coco_layout(root)
    if layout is not None:
        return _open_coco(root, layout, allow_missing, fix)
    shapes = find_unmarked(root)
    if shapes is None:
        raise DataError(f"{describe_folder(root)}; {OTHER_FORMATS}")
    return _open_shapes(shapes, allow_missing, fix)


def _open_coco_per_image(root: Path, contents: Mapping[str, CocoFile], allow_missing: bool, fix: Fix) -> NamedSplits:
    chosen, problems = choose_splits(contents)

    def build(name: str, allow_missing: bool = allow_missing, fix: Fix = fix) -> Source:
        return COCOSource(root, root, allow_missing=allow_missing, fix=fix, content=chosen[name])

    test, notes = None, tuple[Problem, ...]()
    if TEST in chosen:
        test, notes = open_test(root, lambda: build(TEST, True, "drop"))
    val = build(VAL) if VAL in chosen else None
    unused = [content for content in contents.values() if content not in chosen.values()]
    noted = {root / image["file_name"] for content in unused for image in content.images}
    noted |= {file for content in unused for file in content.files}
    return NamedSplits("coco", root, root, build(TRAIN), val, test, (*problems, *notes), frozenset(noted))


def _open_shapes(data: ShapeData, allow_missing: bool, fix: Fix) -> NamedSplits:
    train, val, unused = build_sources(data, allow_missing, fix)
    test, notes = None, tuple[Problem, ...]()
    if TEST in data.splits and len(data.splits) > 1:
        test, notes = open_test(data.file, lambda: build_test(data))
    problems = (*data.problems, *(note for note, _ in unused), *notes)
    noted = frozenset(path for _, paths in unused for path in paths)
    return NamedSplits(data.format, data.root, data.file, train, val, test, problems, noted)


def _open_voc(root: Path, allow_missing: bool, fix: Fix) -> NamedSplits:
    splits = list_splits(root)

    def build(split: str | None, class_names: Sequence[str] | None = None) -> Source:
        return VOCSource(root, split, class_names=class_names, allow_missing=allow_missing, fix=fix)

    test, notes = None, tuple[Problem, ...]()
    if TEST in splits and len(splits) > 1:
        test, notes = open_test(splits[TEST], lambda: VOCSource(root, TEST, allow_missing=True, fix="drop"))
    if {"train", "val"} <= set(splits):
        train, val = _with_same_classes(lambda names: build("train", names), lambda names: build("val", names))
        return NamedSplits("voc", root, root, train, val, test, notes)
    single = next((name for name in ("trainval", "train", "default") if name in splits), None)
    if single is None and splits:
        raise DataError(
            f"{root}: has the lists {join_names(list(splits))}, expected ImageSets/Main/train.txt and val.txt"
        )
    file = root / "Annotations" if single is None else splits[single]
    return NamedSplits("voc", root, file, build(single), None, test, notes)


def _open_sbd(root: Path, allow_missing: bool, fix: Fix) -> NamedSplits:
    splits = list_sbd_splits(root)
    if "train" not in splits:
        raise DataError(f"{root}: SBD folder without lists, expected train.txt and val.txt")

    def build(split: str) -> Source:
        return SBDSource(root, split, allow_missing=allow_missing, fix=fix)

    test, notes = None, tuple[Problem, ...]()
    if TEST in splits:
        test, notes = open_test(splits[TEST][0], lambda: SBDSource(root, TEST, allow_missing=True, fix="drop"))
    val = build("val") if "val" in splits else None
    return NamedSplits("sbd", root, splits["train"][0], build("train"), val, test, notes)


def _open_union(file: Path, allow_missing: bool, fix: Fix) -> NamedSplits:
    train, val, problems = open_union(read_union(file), allow_missing, fix)
    return NamedSplits("union", file, file, train, val, None, problems)


def _open_coco(root: Path, layout: CocoLayout, allow_missing: bool, fix: Fix) -> NamedSplits:
    def builder(file: Path, allow_missing: bool, fix: Fix) -> SourceBuilder:
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

    test, notes = None, tuple[Problem, ...]()
    if (test_file := layout.test) is not None:
        test, notes = open_test(test_file, lambda: builder(test_file, True, "drop")(None))
    if layout.val is None:
        train, val = builder(layout.train, allow_missing, fix)(None), None
    else:
        train, val = _with_same_classes(
            builder(layout.train, allow_missing, fix), builder(layout.val, allow_missing, fix)
        )
    return NamedSplits("coco", root, layout.train, train, val, test, notes)


def _with_same_classes(build_train: SourceBuilder, build_val: SourceBuilder) -> tuple[Source, Source]:
    """Build both splits with the same labels: the classes of train first, then those that only val has."""
    train, val = build_train(None), build_val(None)
    if train.class_names == val.class_names:
        return train, val
    names = tuple(dict.fromkeys((*train.class_names, *val.class_names)))
    return build_train(names), build_val(names)
