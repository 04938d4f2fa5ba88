"""COCO files with VOC's 20 classes: categories are renamed, the other 60 dropped, and what that costs is counted."""

from dasnet_lightning.data.coco_files import CocoFile
from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.voc_files import VOC_CLASSES
from dasnet_lightning.errors import DataError

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
