"""Opening one part of a union: a split of a VOC, SBD or COCO data set, with the classes of the whole.

COCO files with VOC's 20 classes: categories are renamed, the other 60 dropped, and what that costs is counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dasnet_lightning.data.records import Problem, Source
from dasnet_lightning.data.sources.checks import Fix
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.coco_json import CocoFile, choose_image_root, read_coco
from dasnet_lightning.data.sources.coco_layout import describe_folder, find_coco_split, image_folders
from dasnet_lightning.data.sources.sbd import SBDSource, find_sbd_root
from dasnet_lightning.data.sources.union_yaml import PartSpec
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.data.sources.voc_xml import LISTS, VOC_CLASSES, find_voc_roots
from dasnet_lightning.errors import DataError


@dataclass(frozen=True, eq=False)
class Part:
    """One opened part; `problems` are about its choice of classes, those of its records are in the source.

    shares_ids: its image ids name the same photograph in all such parts, as VOC's do in VOC 2007, VOC 2012 and SBD.
    derived_boxes: its boxes are those of its masks. use_masks: whether its masks may be used.
    """

    source: Source
    shares_ids: bool
    derived_boxes: bool
    use_masks: bool
    problems: tuple[Problem, ...] = ()


Opener = Callable[[PartSpec, Sequence[str] | None, bool, Fix], Part]


def open_parts(
    specs: Sequence[PartSpec], class_names: Sequence[str] | None, allow_missing: bool, fix: Fix
) -> list[Part]:
    """Open parts that all have the same classes: those given, else those of the first part.

    Raises DataError where a part is missing, has other classes, or another number of images than it is expected to have.
    """
    names, parts = class_names, []
    for spec in specs:
        part = OPENERS[detect_format(spec)](spec, names, allow_missing, fix)
        names = part.source.class_names
        parts.append(check_count(spec, part, allow_missing))
    return parts


def needs_voc_classes(specs: Sequence[PartSpec]) -> bool:
    """Whether one of the parts can have no other classes than VOC's 20."""
    return any(spec.voc_classes or detect_format(spec) == "sbd" for spec in specs)


def detect_format(spec: PartSpec) -> str:
    """The format of a part, a key of OPENERS. Raises DataError where it does not exist, is no data set, or lacks `split`."""
    if not spec.root.exists():
        raise DataError(f"{spec.place}: {spec.root} does not exist, put the data set there or correct 'root'")
    form = "voc" if find_voc_roots(spec.root) else "sbd" if find_sbd_root(spec.root) else "coco"
    if spec.split is None and not spec.root.is_file():
        raise DataError(
            f"{spec.place}: has no 'split', expected the name of a list or of an annotation file, such as train"
        )
    if spec.split is not None and spec.root.is_file():
        raise DataError(f"{spec.place}: {spec.root} is one file, leave 'split' out or name its folder")
    if spec.voc_classes and form != "coco":
        raise DataError(f"{spec.place}: 'classes: voc' is for COCO data sets, {spec.root} has VOC's classes anyway")
    if spec.lists != LISTS and form != "voc":
        raise DataError(f"{spec.place}: 'list' is for VOC data sets, {spec.root} is none")
    return form


def check_count(spec: PartSpec, part: Part, allow_missing: bool) -> Part:
    """The part, where it has as many images as expected, or where images may be missing: then with the difference listed."""
    found = len(part.source.records)
    if spec.expect is None or found == spec.expect:
        return part
    text = f"{spec.root} has {found:,} images, expected {spec.expect:,}"
    if not allow_missing:
        raise DataError(
            f"{spec.place}: {text}; complete the data set, allow missing images, or correct 'expect' for a part of it"
        )
    problem = Problem(spec.root, f"split '{spec.split}'", text, "refused")
    return replace(part, problems=(*part.problems, problem))


def _open_voc(spec: PartSpec, class_names: Sequence[str] | None, allow_missing: bool, fix: Fix) -> Part:
    assert spec.split is not None
    source = VOCSource(
        spec.root, spec.split, class_names=class_names, allow_missing=allow_missing, fix=fix, lists=spec.lists
    )
    return Part(source, shares_ids=True, derived_boxes=False, use_masks=spec.masks)


def _open_sbd(spec: PartSpec, class_names: Sequence[str] | None, allow_missing: bool, fix: Fix) -> Part:
    assert spec.split is not None
    source = SBDSource(spec.root, spec.split, class_names=class_names, allow_missing=allow_missing, fix=fix)
    return Part(source, shares_ids=True, derived_boxes=True, use_masks=spec.masks)


def _open_coco(spec: PartSpec, class_names: Sequence[str] | None, allow_missing: bool, fix: Fix) -> Part:
    file = _find_file(spec)
    content, notes = read_coco(file), list[Problem]()
    images = choose_image_root(content, image_folders(file, spec.root))
    if spec.voc_classes:
        content, note = choose_voc_classes(content, spec.keep_empty)
        notes.append(note)
    elif class_names == VOC_CLASSES:
        _check_voc(spec, content)
    source = COCOSource(
        file,
        images,
        class_names=VOC_CLASSES if spec.voc_classes else class_names,
        allow_missing=allow_missing,
        fix=fix,
        content=content,
    )
    return Part(source, shares_ids=False, derived_boxes=False, use_masks=spec.masks, problems=tuple(notes))


def _check_voc(spec: PartSpec, content: CocoFile) -> None:
    others = sorted({row["name"] for row in content.categories} - set(VOC_CLASSES[1:]))
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise DataError(
            f"{spec.place}: has classes that the others lack ({shown}); 'classes: voc' takes VOC's and drops them"
        )


def _find_file(spec: PartSpec) -> Path:
    if spec.root.is_file():
        if spec.root.suffix != ".json":
            raise DataError(f"{spec.place}: {spec.root} is no data set, expected a folder or a COCO .json file")
        return spec.root
    assert spec.split is not None
    file = find_coco_split(spec.root, spec.split)
    if file is None:
        if not any(spec.root.rglob("*.json")):
            raise DataError(f"{spec.place}: {describe_folder(spec.root)}")
        names = f"annotations/instances_{spec.split}.json, {spec.split}.json or {spec.split}/_annotations.coco.json"
        raise DataError(f"{spec.place}: {spec.root} has no annotations of '{spec.split}', expected {names}")
    return file


OPENERS: Mapping[str, Opener] = {"voc": _open_voc, "sbd": _open_sbd, "coco": _open_coco}


VOC_NAMES = {
    "airplane": "aeroplane", "couch": "sofa", "dining table": "diningtable", "motorcycle": "motorbike",
    "potted plant": "pottedplant", "tv": "tvmonitor",
}  # fmt: skip


def choose_voc_classes(file: CocoFile, keep_empty: bool) -> tuple[CocoFile, Problem]:
    """The part of a COCO file that VOC's classes cover, and a warning that counts the rest.

    keep_empty: images that show none of the classes stay, without objects. Raises DataError where the file has no category
    of VOC's, or two of the same class.
    """
    renamed = {row["id"]: VOC_NAMES.get(row["name"], row["name"]) for row in file.categories}
    kept = {key: name for key, name in renamed.items() if name in VOC_CLASSES[1:]}
    if not kept:
        raise DataError(f"{file.path}: has no category of VOC's, only {', '.join(sorted(renamed.values())[:20])}")
    twice = sorted({name for name in kept.values() if list(kept.values()).count(name) > 1})
    if twice:
        raise DataError(f"{file.path}: several categories mean '{twice[0]}', merge them")
    annotations = [row for row in file.annotations if row["category_id"] in kept]
    shown = {row["image_id"] for row in annotations}
    images = [row for row in file.images if keep_empty or row["id"] in shown]
    categories = [row | {"name": kept[row["id"]]} for row in file.categories if row["id"] in kept]
    empty = sum(row["id"] not in shown for row in file.images)
    text = (
        f"{len(renamed) - len(kept)} of {len(renamed)} categories are not VOC's: "
        f"{len(file.annotations) - len(annotations)} of {len(file.annotations)} annotations are left out; "
        f"{empty} of {len(file.images)} images show none of VOC's classes and are "
        f"{'kept without objects' if keep_empty else 'left out'}"
    )
    return CocoFile(file.path, images, annotations, categories), Problem(file.path, "categories", text, "warning")
