"""Writer of VOC data sets: `Annotations`, `JPEGImages`, `ImageSets/Main`, `SegmentationObject` and `labels.txt`.

Object k of the XML (from 1) has index k in the index map. VOC itself has either all masks of an image or none. An object
without a mask beside others with masks is therefore marked by `<segmented>0</segmented>`. Its box is void (255) in the
index map, so that other readers do not take it for background.
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
from dasnet_lightning.data.sources.checks import BACKGROUND, Box
from dasnet_lightning.data.sources.masks import VOID_INDEX
from dasnet_lightning.data.sources.model_masks import MASK_SOURCE, MODEL
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.data.sources.voc_masks import FOLDER, find_mask_files
from dasnet_lightning.data.sources.voc_xml import parse_xml
from dasnet_lightning.data.writers.base import ImageLabels, ObjectLabel, Writer, original_source, write_new
from dasnet_lightning.rle import areas, decode
from dasnet_lightning.storage.atomic import replace_bytes, write_text
from dasnet_lightning.visualization.colors import voc_palette

MASK_QUALITY = "mask_quality"  # element of an object
MAX_OBJECTS = VOID_INDEX - 1
MIN_VISIBLE = 0.99  # share of a mask's pixels; less counts as a loss
OVERLAP_LOST = "masks are covered by smaller ones by more than 1 %, because a pixel of VOC belongs to one object"
INDEX_LOST = "masks are left out, because VOC has no index for the objects after the 254th of an image"


class VocWriter(Writer):
    """Writer of VOCdevkit folders; unknown XML elements of a VOC source are kept."""

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
        numbers = range(1, len(labels.objects) + 1)
        tree = new_xml(labels, self.class_names) if base is None else edited_xml(base, labels, numbers)
        _set(tree, "filename", labels.file_name)
        _write_xml(self.root / "Annotations" / f"{stem}.xml", tree, write_new)
        index_map = _write_index_map(self.root / FOLDER / f"{stem}.png", labels, numbers, write_new)
        self.count_loss(INDEX_LOST, sum(item.mask is not None for item in labels.objects[MAX_OBJECTS:]))
        self.count_loss(OVERLAP_LOST, 0 if index_map is None else _count_covered(index_map, labels))

    def finish(self) -> None:
        for split, ids in self._ids.items():
            write_text(self.root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{item}\n" for item in ids))
        names = self.class_names[1:]
        # a line of such a file is "name:color:parts:actions", and "#" begins a comment
        if not any(":" in name or name.startswith("#") or name.casefold() == BACKGROUND for name in names):
            write_text(self.root / "labels.txt", "".join(f"{name}\n" for name in names))


def replace_labels(root: Path, labels: ImageLabels) -> None:
    """Rewrite the labels of one image of a VOC folder in place; each file that changes keeps its previous version.

    Args:
        root: the folder with Annotations.
        labels: all objects of the image as they were read, some of them changed.
    """
    file = root / "Annotations" / f"{labels.image_id}.xml"
    # objects that the reader refused keep their number, and so their index
    numbers = [_number(item) for item in labels.objects]
    _write_xml(file, edited_xml(file, labels), replace_bytes)
    mask_file = find_mask_files(root).get(labels.image_id, root / FOLDER / f"{labels.image_id}.png")
    _write_index_map(mask_file, labels, numbers, replace_bytes)


def new_xml(labels: ImageLabels, class_names: tuple[str, ...]) -> ET.Element:
    """Return the annotation of an image."""
    tree = ET.Element("annotation")
    size = ET.SubElement(tree, "size")
    for name, value in (("width", labels.size[1]), ("height", labels.size[0]), ("depth", 3)):
        _set(size, name, str(value))
    _set(tree, "segmented", "0")
    for item in labels.objects:
        element = ET.SubElement(tree, "object")
        _set(element, "name", class_names[item.label])
        _set(element, "difficult", str(int(item.ignore)))
        _set_box(element, item.box)
    _mark_masks(tree, labels.objects, range(1, len(labels.objects) + 1), tree.findall("object"))
    return tree


def edited_xml(file: Path, labels: ImageLabels, new_numbers: Sequence[int] | None = None) -> ET.Element:
    """Return an annotation file with the changed objects.

    Args:
        file: the annotation that the labels were read from.
        labels: the objects; each id ends in the object's number in the file.
        new_numbers: the objects' numbers where they are written; the file's other objects are then left out. None keeps
            all objects and their numbers.
    """
    tree = parse_xml(file)
    elements = dict(enumerate(tree.findall("object"), start=1))
    numbers = [_number(item) for item in labels.objects]
    for number in elements.keys() - set(numbers) if new_numbers is not None else ():
        tree.remove(elements[number])
    for item, number in zip(labels.objects, numbers, strict=True):
        if item.changed and _box_of(elements[number]) != item.box:
            _set_box(elements[number], item.box)
    _mark_masks(tree, labels.objects, new_numbers or numbers, [elements[number] for number in numbers])
    return tree


def build_index_map(labels: ImageLabels, numbers: Sequence[int]) -> UInt8[np.ndarray, "H W"]:
    """Return the index map of an image: smaller masks on top, void in the boxes of objects without a mask."""
    index_map = np.zeros(labels.size, np.uint8)
    if labels.void is not None:
        index_map[decode([labels.void], labels.size)[0]] = VOID_INDEX
    pairs = list(zip(labels.objects, numbers, strict=True))
    for item, number in pairs:
        if item.mask is None or number > MAX_OBJECTS:
            index_map[_window(item.box)] = VOID_INDEX
    masked = [(item, number) for item, number in pairs if item.mask is not None and number <= MAX_OBJECTS]
    sizes = areas([item.mask for item, _ in masked if item.mask is not None], labels.size)
    # masks by a model never cover those that people drew
    human = np.array([not item.by_model for item, _ in masked], bool)
    for order in np.lexsort((-sizes, human)):
        item, number = masked[order]
        index_map[labels.mask(item)] = number
    return index_map


def _write_xml(file: Path, tree: ET.Element, write: Callable[[Path, bytes], None]) -> None:
    ET.indent(tree)
    write(file, ET.tostring(tree, encoding="utf-8") + b"\n")


def _write_index_map(
    file: Path, labels: ImageLabels, numbers: Sequence[int], write: Callable[[Path, bytes], None]
) -> UInt8[np.ndarray, "H W"] | None:
    """Write and return the index map of an image; None if no object has a mask, then nothing is written."""
    if all(item.mask is None for item in labels.objects):
        return None
    index_map = build_index_map(labels, numbers)
    picture = Image.fromarray(index_map)
    picture.putpalette(voc_palette().ravel().tolist())
    content = io.BytesIO()
    picture.save(content, "PNG")
    write(file, content.getvalue())
    return index_map


def _mark_masks(
    tree: ET.Element, items: Sequence[ObjectLabel], numbers: Sequence[int], elements: Sequence[ET.Element]
) -> None:
    """Mark an image with masks as segmented, and the objects without a mask in it as not segmented."""
    any_mask = any(item.mask is not None for item in items)
    if any_mask or tree.find("segmented") is not None:
        _set(tree, "segmented", str(int(any_mask)))
    for item, number, element in zip(items, numbers, elements, strict=True):
        marked = element.find("segmented") is not None
        if item.mask is not None and number <= MAX_OBJECTS:
            if marked:
                _set(element, "segmented", "1")
        elif any_mask or marked:
            _set(element, "segmented", "0")
        _mark_model(element, item, number)


def _mark_model(element: ET.Element, item: ObjectLabel, number: int) -> None:
    """Mark a mask that a model made, with its quality, and remove the mark from others."""
    made = item.by_model and item.mask is not None and number <= MAX_OBJECTS
    values = {MASK_SOURCE: MODEL if made else None, MASK_QUALITY: item.quality if made else None}
    for name, value in values.items():
        child = element.find(name)
        if value is not None:
            _set(element, name, str(value))
        elif child is not None and (made or item.changed or element.findtext(MASK_SOURCE) == MODEL):
            element.remove(child)


def _set_box(element: ET.Element, box: Box) -> None:
    """Write a box with VOC's inclusive pixel numbers from 1."""
    child = element.find("bndbox")
    child = ET.SubElement(element, "bndbox") if child is None else child
    x0, y0, x1, y1 = box
    for name, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
        _set(child, name, str(int(value)) if value == int(value) else repr(value))


def _box_of(element: ET.Element) -> Box | None:
    """Return the box as it is read, clipped to nothing; None if it cannot be read."""
    try:
        x0, y0, x1, y1 = (float(element.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    return x0 - 1, y0 - 1, x1, y1


def _set(parent: ET.Element, name: str, text: str) -> None:
    child = parent.find(name)
    child = ET.SubElement(parent, name) if child is None else child
    child.text = text


def _number(item: ObjectLabel) -> int:
    return int(item.object_id.rsplit("/", 1)[1])


def _window(box: Box) -> tuple[slice, slice]:
    """Return the pixels that a box touches."""
    x0, y0, x1, y1 = box
    return slice(math.floor(y0), math.ceil(y1)), slice(math.floor(x0), math.ceil(x1))


def _count_covered(index_map: UInt8[np.ndarray, "H W"], labels: ImageLabels) -> int:
    """Return how many masks are covered by smaller ones by more than 1 %."""
    visible = np.bincount(index_map.ravel(), minlength=256)
    masked = [(number, item.mask) for number, item in enumerate(labels.objects[:MAX_OBJECTS], start=1) if item.mask]
    sizes = areas([mask for _, mask in masked], labels.size)
    return sum(int(visible[number]) < MIN_VISIBLE * size for (number, _), size in zip(masked, sizes, strict=True))
