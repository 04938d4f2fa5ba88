"""The files of a VOCdevkit folder: where the root is, which images a split lists, what one XML says.

Boxes in VOC's XML are 1-based inclusive pixels; they leave here as edges (xmin - 1, ymin - 1, xmax, ymax).
"""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dasnet_lightning.data.sources.checks import MAX_SIDE, Box
from dasnet_lightning.errors import DataError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LISTS = ("Main", "Segmentation")


@dataclass(frozen=True, eq=False)
class XmlObject:
    """One <object>: `shown` is its box as written in the file, `box` the same as edges, or None where it is unreadable.

    `segmented` is False if the file says that the object has no mask although others of its image may have one.
    """

    name: str
    box: Box | None
    shown: str
    difficult: bool
    segmented: bool = True


@dataclass(frozen=True, eq=False)
class XmlImage:
    """One annotation file; `size` is (height, width), or None where the file does not say it."""

    size: tuple[int, int] | None
    objects: tuple[XmlObject, ...]


def find_voc_roots(folder: Path) -> tuple[Path, ...]:
    """All folders with Annotations and JPEGImages: the folder itself, in it, or in a VOCdevkit in it."""
    if _is_root(folder):
        return (folder,)
    places = [folder, folder / "VOCdevkit"]
    inside = [path for place in places if place.is_dir() for path in sorted(place.iterdir()) if path.is_dir()]
    return tuple(path for path in inside if _is_root(path))


def find_voc_root(folder: Path) -> Path:
    """The one folder with Annotations and JPEGImages at or below `folder`. Raises DataError where there is none or several."""
    roots = find_voc_roots(folder)
    if len(roots) > 1:
        raise DataError(f"{folder}: holds {' and '.join(root.name for root in roots)}, name one of them")
    if not roots:
        raise DataError(f"{folder}: no VOC data set, expected the folders Annotations, JPEGImages and ImageSets in it")
    return roots[0]


def list_splits(root: Path, lists: Sequence[str] = LISTS) -> dict[str, Path]:
    """The list file of each split: ImageSets/Main first, then ImageSets/Segmentation."""
    found: dict[str, Path] = {}
    for name in lists:
        for path in sorted((root / "ImageSets" / name).glob("*.txt")):
            found.setdefault(path.stem, path)
    return found


def read_split_list(root: Path, split: str, lists: Sequence[str] = LISTS) -> tuple[Path, tuple[str, ...]]:
    """The list file of a split and the image ids in it. Raises DataError where it is missing, empty, or repeats an id."""
    splits = list_splits(root, lists)
    if split not in splits:
        known = f"it has {', '.join(splits)}" if splits else "it holds none"
        raise DataError(f"{root}: no list {' or '.join(f'ImageSets/{name}/{split}.txt' for name in lists)}, {known}")
    return splits[split], read_ids(splits[split])


def read_ids(file: Path) -> tuple[str, ...]:
    """The image ids of a list file, one a line. Raises DataError where it is empty or repeats an id."""
    ids = tuple(line.strip() for line in _read_text(file).splitlines() if line.strip())
    if not ids:
        raise DataError(f"{file}: the list is empty, expected one image id per line")
    twice = sorted({item for item in ids if ids.count(item) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise DataError(f"{file}: {len(twice)} image ids occur twice: {', '.join(twice[:20])}; list each image once")
    return ids


def read_xml(file: Path) -> XmlImage:
    """Read one annotation file. Raises DataError for damaged files and for those that declare entities."""
    text = _read_text(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{file}: declares a DOCTYPE or entities, which VOC files never need; refused, remove it")
    try:
        tree = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise DataError(f"{file}: is no valid XML ({error}), restore the file") from error
    if tree.tag != "annotation":
        raise DataError(f"{file}: begins with <{tree.tag}>, expected a VOC <annotation>")
    return XmlImage(size=_read_size(tree), objects=tuple(_read_object(item) for item in tree.findall("object")))


def read_class_names(root: Path) -> tuple[str, ...]:
    """All class names that occur in the annotation files, sorted, background first."""
    files = sorted((root / "Annotations").glob("*.xml"))
    names = {item.name for file in files for item in read_xml(file).objects}
    return ("background", *sorted(names - {"background", ""}))


def find_images(root: Path) -> dict[str, str]:
    """File name of each image id in JPEGImages."""
    paths = sorted((root / "JPEGImages").iterdir(), key=lambda path: path.suffix.lower() != ".jpg")
    found: dict[str, str] = {}
    for path in paths:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(path.stem, path.name)
    return found


def find_masks(root: Path) -> frozenset[str]:
    """Image ids that have a file in SegmentationObject; the files are not opened."""
    folder = root / "SegmentationObject"
    return (
        frozenset(path.stem for path in folder.iterdir() if path.suffix == ".png") if folder.is_dir() else frozenset()
    )


def choose_classes(root: Path, given: Sequence[str] | None, images: Sequence[XmlImage]) -> tuple[str, ...]:
    """The class names of a data set: those given, VOC's 20 where they suffice, or all that occur in the files."""
    if given is not None:
        return tuple(given)
    used = {item.name for image in images for item in image.objects}
    return VOC_CLASSES if used <= set(VOC_CLASSES[1:]) else read_class_names(root)


def _is_root(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from error


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
        segmented=item.findtext("segmented", "1").strip() != "0",
    )
