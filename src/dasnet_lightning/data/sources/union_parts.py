"""Opening of the parts of a union: each is a split of a VOC, SBD or COCO data set, with the classes of the union.

A COCO file can be reduced to VOC's 20 classes: its categories are renamed, the others are dropped and counted.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dasnet_lightning.data.records import Problem, Source
from dasnet_lightning.data.sources.checks import Fix, join_names
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.coco_images import choose_image_root
from dasnet_lightning.data.sources.coco_json import CocoFile, read_coco
from dasnet_lightning.data.sources.coco_layout import describe_folder, find_coco_split, image_folders
from dasnet_lightning.data.sources.sbd import SBDSource, find_sbd_root
from dasnet_lightning.data.sources.union_yaml import PartSpec
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.data.sources.voc_lists import LISTS
from dasnet_lightning.data.sources.voc_xml import (
    VOC_CLASSES,
    find_voc_root,
    find_voc_roots,
    is_voc_itself,
    read_class_names,
)
from dasnet_lightning.errors import DataError

# COCO's names of VOC's classes, where they differ
VOC_NAMES = {
    "airplane": "aeroplane", "couch": "sofa", "dining table": "diningtable", "motorcycle": "motorbike",
    "potted plant": "pottedplant", "tv": "tvmonitor",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Part:
    """One opened part.

    Attributes:
        source: its images.
        shares_ids: equal image ids in all such parts mean the same photograph, as in VOC 2007, VOC 2012 and SBD.
        derived_boxes: its boxes are the bounding boxes of its masks.
        use_masks: whether its masks may be used.
        problems: problems of its classes and image count; those of its records are in the source.
    """

    source: Source
    shares_ids: bool
    derived_boxes: bool
    use_masks: bool
    problems: tuple[Problem, ...] = ()


def open_parts(
    specs: Sequence[PartSpec], class_names: Sequence[str] | None, allow_missing: bool, fix: Fix
) -> list[Part]:
    """Open parts with the same classes: the given ones, else those of the first part.

    Raises DataError if a part is missing, has other classes, or another number of images than expected.
    """
    names, parts = class_names, []
    for spec in specs:
        part = OPENERS[detect_format(spec)](spec, names, allow_missing, fix)
        names = part.source.class_names
        parts.append(check_count(spec, part, allow_missing))
    return parts


def needs_voc_classes(specs: Sequence[PartSpec]) -> bool:
    """Return whether one of the parts can only have VOC's 20 classes."""
    return any(spec.voc_classes or detect_format(spec) == "sbd" for spec in specs)


def common_voc_classes(specs: Sequence[PartSpec]) -> tuple[str, ...] | None:
    """Return the classes of several VOC folders that have only some of VOC's 20, in VOC's order; None for other parts."""
    roots = dict.fromkeys(spec.root for spec in specs)
    if len(roots) < 2 or any(detect_format(spec) != "voc" for spec in specs):
        return None
    names: set[str] = set()
    for root in roots:
        folder = find_voc_root(root)
        names |= set(VOC_CLASSES) if is_voc_itself(folder) else set(read_class_names(folder))
    return tuple(name for name in VOC_CLASSES if name in names) if names <= set(VOC_CLASSES) else None


def detect_format(spec: PartSpec) -> str:
    """Return the format of a part, a key of OPENERS. Raises DataError if the part does not exist or its keys do not fit."""
    if not spec.root.exists():
        raise DataError(f"{spec.location}: {spec.root} does not exist, put the data set there or correct 'root'")
    data_format = "voc" if find_voc_roots(spec.root) else "sbd" if find_sbd_root(spec.root) else "coco"
    if spec.split is None and not spec.root.is_file():
        raise DataError(
            f"{spec.location}: has no 'split', expected the name of a list or of an annotation file, such as train"
        )
    if spec.split is not None and spec.root.is_file():
        raise DataError(f"{spec.location}: {spec.root} is one file, remove 'split' or name the file's folder")
    if spec.voc_classes and data_format != "coco":
        raise DataError(
            f"{spec.location}: 'classes: voc' is only for COCO data sets and {spec.root} has VOC's classes, remove it"
        )
    if spec.lists != LISTS and data_format != "voc":
        raise DataError(f"{spec.location}: 'list' is only for VOC data sets and {spec.root} is not one, remove it")
    return data_format


def check_count(spec: PartSpec, part: Part, allow_missing: bool) -> Part:
    """Return the part if it has the expected number of images.

    Otherwise raise DataError or, if images may be missing, return the part with a problem that states the difference.
    """
    count = len(part.source.records)
    if spec.expect is None or count == spec.expect:
        return part
    message = f"{spec.root} has {count:,} images, expected {spec.expect:,}"
    if not allow_missing:
        raise DataError(
            f"{spec.location}: {message}; complete the data set, allow missing images, or correct 'expect' if you use "
            "only some of them"
        )
    problem = Problem(spec.root, f"split '{spec.split}'", message, "refused")
    return replace(part, problems=(*part.problems, problem))


def choose_voc_classes(file: CocoFile, keep_empty: bool) -> tuple[CocoFile, Problem]:
    """Reduce a COCO file to VOC's classes; also return a warning that counts what was left out.

    Args:
        file: the COCO file.
        keep_empty: keep images that show none of the classes, without objects.

    Raises:
        DataError: the file has no category of VOC's, or several categories of the same class.
    """
    renamed = {row["id"]: VOC_NAMES.get(row["name"], row["name"]) for row in file.categories}
    kept = {category_id: name for category_id, name in renamed.items() if name in VOC_CLASSES[1:]}
    if not kept:
        raise DataError(
            f"{file.path}: has no category of VOC's, only {join_names(sorted(renamed.values()))}; remove 'classes: voc'"
        )
    repeated = sorted(name for name, count in Counter(kept.values()).items() if count > 1)
    if repeated:
        raise DataError(f"{file.path}: several categories mean '{repeated[0]}', merge them")
    annotations = [row for row in file.annotations if row["category_id"] in kept]
    shown = {row["image_id"] for row in annotations}
    images = [row for row in file.images if keep_empty or row["id"] in shown]
    categories = [row | {"name": kept[row["id"]]} for row in file.categories if row["id"] in kept]
    empty = sum(row["id"] not in shown for row in file.images)
    message = (
        f"{len(renamed) - len(kept)} of {len(renamed)} categories are not VOC's: "
        f"{len(file.annotations) - len(annotations)} of {len(file.annotations)} annotations are left out; "
        f"{empty} of {len(file.images)} images show none of VOC's classes and are "
        f"{'kept without objects' if keep_empty else 'left out'}"
    )
    return CocoFile(file.path, images, annotations, categories, file.notes), Problem(
        file.path, "categories", message, "warning"
    )


def _open_voc_part(spec: PartSpec, class_names: Sequence[str] | None, allow_missing: bool, fix: Fix) -> Part:
    assert spec.split is not None
    source = VOCSource(
        spec.root, spec.split, class_names=class_names, allow_missing=allow_missing, fix=fix, lists=spec.lists
    )
    return Part(source, shares_ids=True, derived_boxes=False, use_masks=spec.masks)


def _open_sbd_part(spec: PartSpec, class_names: Sequence[str] | None, allow_missing: bool, fix: Fix) -> Part:
    assert spec.split is not None
    source = SBDSource(spec.root, spec.split, class_names=class_names, allow_missing=allow_missing, fix=fix)
    return Part(source, shares_ids=True, derived_boxes=True, use_masks=spec.masks)


def _open_coco_part(spec: PartSpec, class_names: Sequence[str] | None, allow_missing: bool, fix: Fix) -> Part:
    file = _find_annotation_file(spec)
    content, problems = read_coco(file), list[Problem]()
    images = choose_image_root(content, image_folders(file, spec.root))
    if spec.voc_classes:
        content, problem = choose_voc_classes(content, spec.keep_empty)
        problems.append(problem)
    elif class_names == VOC_CLASSES:
        _check_only_voc_classes(spec, content)
    source = COCOSource(
        file,
        images,
        class_names=VOC_CLASSES if spec.voc_classes else class_names,
        allow_missing=allow_missing,
        fix=fix,
        content=content,
    )
    return Part(source, shares_ids=False, derived_boxes=False, use_masks=spec.masks, problems=tuple(problems))


def _check_only_voc_classes(spec: PartSpec, content: CocoFile) -> None:
    others = sorted({row["name"] for row in content.categories} - set(VOC_CLASSES[1:]))
    if others:
        raise DataError(
            f"{spec.location}: has classes that the other parts lack ({join_names(others, 5)}); "
            "add 'classes: voc' to keep only VOC's"
        )


def _find_annotation_file(spec: PartSpec) -> Path:
    if spec.root.is_file():
        if spec.root.suffix != ".json":
            raise DataError(f"{spec.location}: {spec.root} is not a data set, expected a folder or a COCO .json file")
        return spec.root
    assert spec.split is not None
    file = find_coco_split(spec.root, spec.split)
    if file is None:
        if not any(spec.root.rglob("*.json")):
            raise DataError(f"{spec.location}: {describe_folder(spec.root)}")
        names = f"annotations/instances_{spec.split}.json, {spec.split}.json or {spec.split}/_annotations.coco.json"
        raise DataError(f"{spec.location}: {spec.root} has no annotations of '{spec.split}', expected {names}")
    return file


Opener = Callable[[PartSpec, Sequence[str] | None, bool, Fix], Part]
OPENERS: Mapping[str, Opener] = {"voc": _open_voc_part, "sbd": _open_sbd_part, "coco": _open_coco_part}
