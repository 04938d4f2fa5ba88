"""Files of a VOCdevkit folder: its root, the lists of its splits, and its XML annotations.

VOC's boxes are 1-based inclusive pixels; they are converted to edges (xmin - 1, ymin - 1, xmax, ymax).
"""

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dasnet_lightning.data.sources.checks import MAX_SIDE, Box, join_names
from dasnet_lightning.errors import DataError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LISTS = ("Main", "Segmentation")  # folders of ImageSets


@dataclass(frozen=True, eq=False)
class XmlObject:
    """One <object>: `shown` is its box as written in the file, `box` the same as edges, or None if it cannot be read."""

    name: str
    box: Box | None
    shown: str
    difficult: bool


@dataclass(frozen=True, eq=False)
class XmlImage:
    """One annotation file; `size` is (height, width), or None if the file does not give a valid one."""

    size: tuple[int, int] | None
    objects: tuple[XmlObject, ...]


def find_voc_roots(folder: Path) -> tuple[Path, ...]:
    """Find all folders with Annotations and JPEGImages: the folder itself, its children, or those of its VOCdevkit."""
    if _is_root(folder):
        return (folder,)
    parents = [parent for parent in (folder, folder / "VOCdevkit") if parent.is_dir()]
    return tuple(path for parent in parents for path in sorted(parent.iterdir()) if _is_root(path))


def find_voc_root(folder: Path) -> Path:
    """Find the one folder with Annotations and JPEGImages at or below `folder`. Raises DataError if none or several match."""
    roots = find_voc_roots(folder)
    if len(roots) > 1:
        raise DataError(f"{folder}: contains {' and '.join(root.name for root in roots)}, choose one of them")
    if not roots:
        raise DataError(
            f"{folder}: not a VOC data set, expected the folders Annotations, JPEGImages and ImageSets in it"
        )
    return roots[0]


def list_splits(root: Path, lists: Sequence[str] = LISTS) -> dict[str, Path]:
    """Find the list file of each split; a list in an earlier folder takes precedence."""
    splits: dict[str, Path] = {}
    for name in lists:
        for path in sorted((root / "ImageSets" / name).glob("*.txt")):
            splits.setdefault(path.stem, path)
    return splits


def read_split_list(root: Path, split: str, lists: Sequence[str] = LISTS) -> tuple[Path, tuple[str, ...]]:
    """Return the list file of a split and its image ids. Raises DataError if it is missing, empty, or repeats an id."""
    splits = list_splits(root, lists)
    if split not in splits:
        expected = " or ".join(f"ImageSets/{name}/{split}.txt" for name in lists)
        known = f"the folder has the lists {join_names(list(splits))}" if splits else "the folder has no lists"
        raise DataError(f"{root}: has no list of the split '{split}', expected {expected}; {known}")
    return splits[split], read_ids(splits[split])


def read_ids(file: Path) -> tuple[str, ...]:
    """Read the image ids of a list file, one per line. Raises DataError if it is empty or repeats an id."""
    ids = tuple(line.strip() for line in _read_text(file).splitlines() if line.strip())
    if not ids:
        raise DataError(f"{file}: the list is empty, expected one image id per line")
    repeated = sorted(image_id for image_id, count in Counter(ids).items() if count > 1)
    if repeated:
        raise DataError(f"{file}: {len(repeated)} image ids are repeated: {join_names(repeated)}; list each image once")
    return ids


def read_xml(file: Path) -> XmlImage:
    """Read one annotation file. Raises DataError if it is damaged or declares entities."""
    text = _read_text(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{file}: declares a DOCTYPE or entities, which VOC files never need; remove the declaration")
    try:
        tree = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise DataError(f"{file}: not valid XML ({error}), restore the file") from error
    if tree.tag != "annotation":
        raise DataError(f"{file}: begins with <{tree.tag}>, expected a VOC <annotation>")
    return XmlImage(size=_read_size(tree), objects=tuple(_read_object(item) for item in tree.findall("object")))


def read_class_names(root: Path) -> tuple[str, ...]:
    """Return all class names in the annotation files, sorted, with the background first."""
    files = sorted((root / "Annotations").glob("*.xml"))
    names = {item.name for file in files for item in read_xml(file).objects}
    return ("background", *sorted(names - {"background", ""}))


def find_images(root: Path) -> dict[str, str]:
    """Return the file name of each image id in JPEGImages; .jpg takes precedence."""
    paths = sorted((root / "JPEGImages").iterdir(), key=lambda path: path.suffix.lower() != ".jpg")
    names: dict[str, str] = {}
    for path in paths:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            names.setdefault(path.stem, path.name)
    return names


def find_masks(root: Path) -> frozenset[str]:
    """Return the image ids that have a file in SegmentationObject, without opening the files."""
    folder = root / "SegmentationObject"
    if not folder.is_dir():
        return frozenset()
    return frozenset(path.stem for path in folder.iterdir() if path.suffix == ".png")


def choose_classes(root: Path, class_names: Sequence[str] | None, images: Sequence[XmlImage]) -> tuple[str, ...]:
    """Choose the class names: the given ones, else VOC's 20 if they suffice, else all that occur in the files."""
    if class_names is not None:
        return tuple(class_names)
    used = {item.name for image in images for item in image.objects}
    return VOC_CLASSES if used <= set(VOC_CLASSES[1:]) else read_class_names(root)


def _is_root(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error}), restore the file") from error


def _read_size(tree: ET.Element) -> tuple[int, int] | None:
    try:
        size = int(tree.findtext("size/height", "")), int(tree.findtext("size/width", ""))
    except ValueError:
        return None
    return size if min(size) > 0 and max(size) <= MAX_SIDE else None


def _read_object(item: ET.Element) -> XmlObject:
    texts = [item.findtext(f"bndbox/{side}", "missing").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = (float(text) for text in texts)
        box: Box | None = (x0 - 1, y0 - 1, x1, y1)
    except ValueError:
        box = None
    return XmlObject(
        name=item.findtext("name", "").strip(),
        box=box,
        shown=f"[{', '.join(texts)}]",
        difficult=item.findtext("difficult", "0").strip() == "1",
    )
