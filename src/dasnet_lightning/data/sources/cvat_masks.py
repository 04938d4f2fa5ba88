"""CVAT's "PASCAL VOC 1.1" and "Segmentation mask 1.1" exports, which a `labelmap.txt` with the class colors marks.

They name the objects twice: the XML files list the boxes, SegmentationObject and SegmentationClass show the masks, both in
no common order. A mask belongs to the box of its class that it overlaps most; masks and boxes without a partner are objects
of their own. Boxes are edges here, not VOC's pixel numbers.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dasnet_lightning.data.images import IMAGE_SUFFIXES, upright_size
from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import Box
from dasnet_lightning.data.sources.drawing import Bitmap, DrawnImage, DrawnObject, encode_bitmap
from dasnet_lightning.data.sources.image_index import list_files
from dasnet_lightning.data.sources.shape_data import ShapeData, SplitContent, split_name
from dasnet_lightning.data.sources.voc_colors import RGB, find_colors, read_label_map
from dasnet_lightning.data.sources.voc_lists import read_list
from dasnet_lightning.data.sources.voc_xml import XmlObject, read_xml
from dasnet_lightning.visualization import voc_palette

LABEL_MAP = "labelmap.txt"
OBJECTS, CLASSES, XMLS = "SegmentationObject", "SegmentationClass", "Annotations"
MIN_IOU = 0.5  # of a box and the box of a mask, to be one object
BLACK = (0, 0, 0)

Instance = tuple[str, Box, Bitmap]  # class name, box and mask


def find_cvat_masks(root: Path) -> ShapeData | None:
    """Read the CVAT export at the folder `root`; None if it is another format.

    Raises:
        DataError: the label map or a list is damaged.
    """
    if not (root / LABEL_MAP).is_file() or not any((root / name).is_dir() for name in (CLASSES, XMLS)):
        return None
    colors = read_label_map(root / LABEL_MAP)
    names = tuple(name for name, color in colors.items() if color != BLACK and name != "background")
    images = _list_images(root)
    xmls = _by_id(root / XMLS, (".xml",))
    objects, classes = (_by_id(root / folder, (".png",)) for folder in (OBJECTS, CLASSES))
    splits: dict[str, SplitContent] = {}
    listed: set[str] = set()
    for name, ids in (_read_lists(root) or {"all": sorted({*xmls, *objects, *classes})}).items():
        content = splits.setdefault(name, SplitContent())
        for image_id in dict.fromkeys(ids):
            listed.add(image_id)
            instances = _read_masks(image_id, objects.get(image_id), classes.get(image_id), colors, content)
            _add_image(root, image_id, images.get(image_id), xmls.get(image_id), instances, content)
    unused = [path for files in (objects, xmls) for item, path in files.items() if item not in listed]
    problems = [Problem(path, "file", "belongs to no image of the lists in ImageSets", "refused") for path in unused]
    return ShapeData("cvat", root, root / LABEL_MAP, names, splits, problems)


def _by_id(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    files = list_files(folder, suffixes) if folder.is_dir() else []
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def _list_images(root: Path) -> dict[str, Path]:
    """Return the images by id; they lie in JPEGImages, images or, if both are missing, beside the folders of masks."""
    for name in ("JPEGImages", "images"):
        images = _by_id(root / name, IMAGE_SUFFIXES)
        if images:
            return images
    return {path.stem: path for path in sorted(root.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}


def _read_lists(root: Path) -> dict[str, list[str]]:
    """Return the image ids of each split; lists of single classes, such as `cat_train`, are left out."""
    files = [path for name in ("Main", "Segmentation") for path in sorted((root / "ImageSets" / name).glob("*.txt"))]
    stems = {path.stem for path in files}
    splits: dict[str, list[str]] = {}
    for path in files:
        if not any(path.stem.endswith(f"_{other}") for other in stems):
            splits.setdefault(split_name(path.stem), []).extend(read_list(path))
    return {name: ids for name, ids in splits.items() if ids}


def _add_image(
    root: Path, image_id: str, path: Path | None, xml: Path | None, instances: list[Instance], content: SplitContent
) -> None:
    parsed = read_xml(xml) if xml else None
    size = parsed.size if parsed and parsed.size else upright_size(path) if path else (1, 1)
    file = xml or root / OBJECTS / f"{image_id}.png"
    if path is None:
        reason = f"the image file does not exist, looked in {root / 'JPEGImages'} and {root / 'images'}"
        content.missing.append(Problem(file, f"image '{image_id}'", reason, "refused"))
    objects = _match(image_id, parsed.objects if parsed else (), instances)
    name = path.relative_to(root).as_posix() if path else image_id
    content.images.append(DrawnImage(image_id, name, path, size, file, objects))


def _match(image_id: str, boxes: Sequence[XmlObject], instances: Sequence[Instance]) -> tuple[DrawnObject, ...]:
    """Join boxes and masks of one class by their overlap, best pairs first."""
    # read_xml takes xmin and ymin for VOC's numbers of pixels, the exports write edges
    edges = [item.box and (item.box[0] + 1, item.box[1] + 1, item.box[2], item.box[3]) for item in boxes]
    pairs = [(_iou(box, extent), -place, -number)
             for place, (item, box) in enumerate(zip(boxes, edges, strict=True))
             for number, (name, extent, _) in enumerate(instances) if box and item.name == name]  # fmt: skip
    masks: dict[int, int] = {}
    for overlap, place, number in sorted(pairs, reverse=True):
        if overlap >= MIN_IOU and -place not in masks and -number not in masks.values():
            masks[-place] = -number
    objects = []
    for place, (item, box) in enumerate(zip(boxes, edges, strict=True)):
        bitmaps = (instances[masks[place]][2],) if place in masks else ()
        fault = "" if box else f"box {item.shown} is not four numbers"
        object_id = f"{image_id}/{place + 1}"
        objects.append(
            DrawnObject(object_id, item.name, box, item.shown, (), bitmaps, ignore=item.difficult, fault=fault)
        )
    for number, (name, extent, bitmap) in enumerate(instances):
        if number not in masks.values():
            objects.append(DrawnObject(f"{image_id}/mask {number + 1}", name, extent, bitmaps=(bitmap,)))
    return tuple(objects)


def _read_masks(
    image_id: str, objects: Path | None, classes: Path | None, colors: dict[str, RGB], content: SplitContent
) -> list[Instance]:
    """Read the masks of one image; what cannot be read is a problem of the split."""
    if objects is None or classes is None:
        if classes is not None:
            text = f"has no file in {OBJECTS}, which tells the objects of a class apart"
            content.problems.append(Problem(classes, f"image '{image_id}'", text, "refused"))
        return []
    names = list(colors)
    try:
        numbers = find_colors(_read_rgb(objects), voc_palette())
        labels = find_colors(_read_rgb(classes), [colors[name] for name in names])
        if numbers.shape != labels.shape:
            raise ValueError(f"its size differs from that of its file in {CLASSES}")
    except (OSError, SyntaxError, ValueError) as error:
        content.problems.append(Problem(objects, f"image '{image_id}'", f"no mask can be read: {error}", "refused"))
        return []
    instances = []
    for number in np.unique(numbers[numbers > 0]).tolist():
        mask = numbers == number
        name = names[int(np.bincount(labels[mask]).argmax())]
        if colors[name] != BLACK:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            top, left, bottom, right = (int(value) for value in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
            bitmap = encode_bitmap(mask[top:bottom, left:right], left, top)
            instances.append((name, (float(left), float(top), float(right), float(bottom)), bitmap))
    return instances


def _read_rgb(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def _iou(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    inner = max(width, 0.0) * max(height, 0.0)
    outer = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - inner
    return inner / outer if outer > 0 else 0.0
