"""Writes VOC data sets: `Annotations`, `JPEGImages`, `ImageSets/Main` and `SegmentationObject`.

Object k of the XML, counted from 1, is index k of the picture in SegmentationObject. VOC itself knows images with and
without masks only: an object without one, beside others that have theirs, is marked by `<segmented>0</segmented>`. Its
box is void (255) in the picture, so that no reader takes it for background.
"""

import io
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dasnet_lightning.data.records import Source
from dasnet_lightning.data.sources.checks import Box
from dasnet_lightning.data.sources.masks import VOID_INDEX
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.data.sources.voc_xml import read_xml
from dasnet_lightning.data.writers.base import ImageLabels, ObjectLabel, Writer, original_source, write_new
from dasnet_lightning.rle import areas, decode
from dasnet_lightning.storage.atomic import replace_bytes, write_text
from dasnet_lightning.visualization.colors import voc_palette

MOST_INDICES = VOID_INDEX - 1
KEPT = 0.99  # of a mask's pixels, below which an overlap counts as a loss
OVERLAP_LOST = "masks are covered by smaller ones by more than 1 %, VOC gives each pixel to one object"
INDEX_LOST = "masks are left out, VOC has no index for the objects after the 254th of an image"


class VocWriter(Writer):
    """Writer of VOCdevkit folders; XML elements of a VOC source that it does not know are kept."""

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        super().__init__(root, class_names)
        self._ids: dict[str, list[str]] = {}
        self._sources: dict[str, Source] = {}

    def image_folder(self, split: str) -> Path:
        return self.root / "JPEGImages"

    def begin(self, split: str, source: Source) -> None:
        self._sources[split] = original_source(source)
        self._ids[split] = []

    def add(self, split: str, labels: ImageLabels) -> None:
        stem = Path(labels.file_name).stem
        self._ids[split].append(stem)
        source = self._sources[split]
        base = source.root / "Annotations" / f"{labels.image_id}.xml" if isinstance(source, VOCSource) else None
        tree = new_xml(labels, self.class_names) if base is None else edited_xml(base, labels, drop_others=True)
        picture = _write_image(self.root, stem, tree, labels, range(1, len(labels.objects) + 1), write_new)
        self.count_loss(INDEX_LOST, sum(item.mask is not None for item in labels.objects[MOST_INDICES:]))
        self.count_loss(OVERLAP_LOST, 0 if picture is None else _count_covered(picture, labels))

    def finish(self) -> None:
        for split, ids in self._ids.items():
            write_text(self.root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{item}\n" for item in ids))


def replace_labels(root: Path, labels: ImageLabels) -> None:
    """Rewrite the labels of one image of a VOC folder in place; each file that changes keeps its previous version.

    Args:
        root: the folder with Annotations.
        labels: all objects of the image as they were read, some of them changed.
    """
    file = root / "Annotations" / f"{labels.image_id}.xml"
    # objects that the reader refused keep their place, and so their index
    places = [_place(item) for item in labels.objects]
    tree = edited_xml(file, labels, drop_others=False)
    _write_image(root, labels.image_id, tree, labels, places, replace_bytes)


def new_xml(labels: ImageLabels, class_names: tuple[str, ...]) -> ET.Element:
    """Return the annotation of an image."""
    tree = ET.Element("annotation")
    _set(tree, "filename", labels.file_name)
    size = ET.SubElement(tree, "size")
    for name, value in (("width", labels.size[1]), ("height", labels.size[0]), ("depth", 3)):
        _set(size, name, str(value))
    _set(tree, "segmented", "0")
    for item in labels.objects:
        element = ET.SubElement(tree, "object")
        _set(element, "name", class_names[item.label])
        _set(element, "difficult", str(int(item.ignore)))
        _set_box(element, item.box)
    _mark_masks(tree, list(labels.objects), list(tree.findall("object")))
    return tree


def edited_xml(file: Path, labels: ImageLabels, drop_others: bool) -> ET.Element:
    """Return the annotation of an image that was read from a file, with the changed objects.

    Args:
        file: the annotation that the labels were read from.
        labels: the objects; their ids end in their place in the file.
        drop_others: whether to leave out objects of the file that are not among the labels.
    """
    read_xml(file)  # refuses files that declare entities
    tree = ET.fromstring(file.read_text(encoding="utf-8-sig"))
    elements = dict(enumerate(tree.findall("object"), start=1))
    items = {_place(item): item for item in labels.objects}
    for place, element in elements.items():
        if place in items and items[place].changed:
            _set_box(element, items[place].box)
        elif place not in items and drop_others:
            tree.remove(element)
    kept = [place for place in elements if place in items]
    _mark_masks(tree, [items[place] for place in kept], [elements[place] for place in kept])
    return tree


def index_picture(labels: ImageLabels, places: Sequence[int]) -> UInt8[np.ndarray, "H W"]:
    """Paint the masks of an image by the index of their object, smaller ones on top, and void where nothing is known."""
    picture = np.zeros(labels.size, np.uint8)
    if labels.void is not None:
        picture[decode([labels.void], labels.size)[0]] = VOID_INDEX
    for item in labels.objects:
        if item.changed and item.mask is not None:
            picture[_window(item.box)] = 0  # void for want of a mask
    pairs = list(zip(labels.objects, places, strict=True))
    for item, place in pairs:
        if item.mask is None or place > MOST_INDICES:
            picture[_window(item.box)] = VOID_INDEX
    masked = [(item, place) for item, place in pairs if item.mask is not None and place <= MOST_INDICES]
    sizes = areas([item.mask for item, _ in masked if item.mask is not None], labels.size)
    for order in np.argsort(-sizes, kind="stable"):
        item, place = masked[order]
        picture[labels.mask(item)] = place
    return picture


def _write_image(
    root: Path,
    stem: str,
    tree: ET.Element,
    labels: ImageLabels,
    places: Sequence[int],
    write: Callable[[Path, bytes], None],
) -> UInt8[np.ndarray, "H W"] | None:
    """Write both files of an image and return its index picture, None if no object has a mask."""
    ET.indent(tree)
    write(root / "Annotations" / f"{stem}.xml", ET.tostring(tree, encoding="utf-8") + b"\n")
    if all(item.mask is None for item in labels.objects):
        return None
    indices = index_picture(labels, places)
    picture = Image.fromarray(indices)
    picture.putpalette(voc_palette().ravel().tolist())
    file = io.BytesIO()
    picture.save(file, "PNG")
    write(root / "SegmentationObject" / f"{stem}.png", file.getvalue())
    return indices


def _mark_masks(tree: ET.Element, items: Sequence[ObjectLabel], elements: Sequence[ET.Element]) -> None:
    """Mark the image as segmented, and in it the objects without a mask."""
    any_mask = any(item.mask is not None for item in items)
    if any_mask or tree.find("segmented") is not None:
        _set(tree, "segmented", str(int(any_mask)))
    for place, (item, element) in enumerate(zip(items, elements, strict=True), start=1):
        if any_mask and (item.mask is None or place > MOST_INDICES):
            _set(element, "segmented", "0")
        elif element.find("segmented") is not None:
            _set(element, "segmented", "1")


def _set_box(element: ET.Element, box: Box) -> None:
    """Write a box as VOC does: pixels count from 1 and the last one belongs to the object."""
    child = element.find("bndbox")
    child = ET.SubElement(element, "bndbox") if child is None else child
    x0, y0, x1, y1 = box
    for name, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
        _set(child, name, str(int(value)) if value == int(value) else repr(value))


def _set(parent: ET.Element, name: str, text: str) -> None:
    child = parent.find(name)
    child = ET.SubElement(parent, name) if child is None else child
    child.text = text


def _place(item: ObjectLabel) -> int:
    return int(item.object_id.rsplit("/", 1)[1])


def _window(box: Box) -> tuple[slice, slice]:
    """Return the pixels that a box touches."""
    x0, y0, x1, y1 = box
    return slice(math.floor(y0), math.ceil(y1)), slice(math.floor(x0), math.ceil(x1))


def _count_covered(picture: UInt8[np.ndarray, "H W"], labels: ImageLabels) -> int:
    """Count the masks that smaller ones cover by more than 1 %."""
    visible = np.bincount(picture.ravel(), minlength=256)
    masked = [(place, item.mask) for place, item in enumerate(labels.objects[:MOST_INDICES], start=1) if item.mask]
    sizes = areas([mask for _, mask in masked], labels.size)
    return sum(int(visible[place]) < KEPT * size for (place, _), size in zip(masked, sizes, strict=True))
