"""Files of a VOCdevkit folder: its root, its classes, and its XML annotations.

VOC's boxes are 1-based inclusive pixels; they are converted to edges (xmin - 1, ymin - 1, xmax, ymax).
"""

import codecs
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dasnet_lightning.data.images import IMAGE_SUFFIXES
from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import BACKGROUND, Box, describe_renamed, join_names, rename_class
from dasnet_lightning.data.sources.coco_values import to_flag, to_side
from dasnet_lightning.data.sources.model_masks import MASK_SOURCE, MODEL
from dasnet_lightning.data.sources.voc_lists import find_xml_files
from dasnet_lightning.data.sources.voc_masks import find_mask_files
from dasnet_lightning.errors import DataError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CLASS_FILES = ("labelmap.txt", "classes.txt", "labels.txt")  # in the root; CVAT writes "name:color:parts:actions"
WIDER_ENCODINGS = {"gb2312": "gb18030", "gbk": "gb18030", "gb_2312-80": "gb18030"}  # what such files really hold

_DECLARATION = re.compile(r"\s*<\?xml.*?\?>", re.DOTALL)
_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["']""")
_VOC_DATABASE = re.compile(r"VOC\s*20\d\d")


@dataclass(frozen=True, eq=False)
class XmlObject:
    """One <object>.

    Attributes:
        name: name of its class.
        box: xyxy edges, or None if they cannot be read.
        shown: the box as written in the file.
        difficult: whether it is marked as difficult.
        written_name: name of its class as written in the file.
        segmented: False if the file says that the object has no mask, although others of its image may have one.
        by_model: whether the file says that a model made the mask.
    """

    name: str
    box: Box | None
    shown: str
    difficult: bool
    written_name: str
    segmented: bool = True
    by_model: bool = False


@dataclass(frozen=True, eq=False)
class XmlImage:
    """One annotation file.

    Attributes:
        size: (height, width), or None if the file does not give a valid one.
        objects: all objects.
        of_voc: whether the file names PASCAL VOC as its source.
        polygons: number of objects with a polygon, which is not read.
    """

    size: tuple[int, int] | None
    objects: tuple[XmlObject, ...]
    of_voc: bool = False
    polygons: int = 0


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


def read_xml(file: Path) -> XmlImage:
    """Read one annotation file. Raises DataError if it is damaged or declares entities, or if a flag is unreadable."""
    tree = parse_xml(file)
    objects = tuple(_read_object(file, number, item) for number, item in enumerate(tree.findall("object"), start=1))
    source = f"{tree.findtext('source/database', '')} {tree.findtext('source/annotation', '')}"
    polygons = sum(item.find("polygon") is not None for item in tree.findall("object"))
    return XmlImage(_read_size(tree), objects, _VOC_DATABASE.search(source) is not None, polygons)


def parse_xml(file: Path) -> ET.Element:
    """Return the <annotation> of a file. Raises DataError if the file is damaged or declares entities."""
    text = _decode_xml(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{file}: declares a DOCTYPE or entities, which VOC files never need; remove the declaration")
    try:
        tree = ET.fromstring(_DECLARATION.sub("", text, count=1))
    except (ET.ParseError, ValueError) as error:
        raise DataError(f"{file}: not valid XML ({error}), restore the file") from error
    if tree.tag != "annotation":
        raise DataError(f"{file}: begins with <{tree.tag}>, expected a VOC <annotation>")
    return tree


def read_class_names(root: Path) -> tuple[str, ...]:
    """Return all class names in the annotation files, sorted, with the background first."""
    files = sorted(find_xml_files(root).values())
    names = {item.name for file in files for item in read_xml(file).objects}
    return (BACKGROUND, *sorted(names - {""}))


def find_images(root: Path) -> dict[str, str]:
    """Return the file name of each image id in JPEGImages and its subfolders; .jpg takes precedence."""
    folder = root / "JPEGImages"
    paths = sorted(folder.rglob("*"), key=lambda path: path.suffix.lower() != ".jpg")
    names: dict[str, str] = {}
    for path in paths:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            name = path.relative_to(folder)
            names.setdefault(name.with_suffix("").as_posix(), name.as_posix())
    return names


def find_masks(root: Path) -> frozenset[str]:
    """Return the image ids that have a file in SegmentationObject, without opening the files."""
    return frozenset(find_mask_files(root))


def choose_classes(
    root: Path, class_names: Sequence[str] | None, images: Sequence[XmlImage]
) -> tuple[tuple[str, ...], list[Problem]]:
    """Choose the class names: the given ones, VOC's 20 for VOC itself, those of a class file, or all that occur.

    Returns:
        The names, background first, and a warning if VOC's 20 would suffice but fewer are used.
    """
    if class_names is not None:
        return tuple(class_names), []
    used = {item.name for image in images for item in image.objects}
    text = describe_renamed(sorted({(item.written_name, item.name) for image in images for item in image.objects}))
    notes = [Problem(root, "classes", text, "warning")] if text else []
    within_voc = used <= set(VOC_CLASSES[1:])
    if within_voc and 2 * sum(image.of_voc for image in images) > len(images):
        return VOC_CLASSES, []
    listed = _read_class_file(root)
    occurring = read_class_names(root)
    names = tuple(dict.fromkeys((*listed, *occurring)))
    if len(names) == 1:  # no object at all
        return VOC_CLASSES, []
    if not within_voc or set(names) == set(VOC_CLASSES):
        return names, notes
    text = (
        f"those that {'a file lists' if listed else 'occur'} are used, not VOC's 20, because the files do not name "
        f"PASCAL VOC as their source: {join_names(names[1:])}"
    )
    return names, [Problem(root, "classes", text, "warning")]


def is_voc_itself(root: Path, count: int = 20) -> bool:
    """Return whether most of the first annotation files of a folder name PASCAL VOC as their source."""
    files = sorted(find_xml_files(root).values())[:count]
    return 2 * sum(read_xml(file).of_voc for file in files) > len(files)


def _read_class_file(root: Path) -> tuple[str, ...]:
    """Return the class names that a file in the root lists, with the background first; () if there is none."""
    file = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if file is None:
        return ()
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error}), restore the file") from error
    names = [line.split(":")[0].strip() for line in lines if line and not line.startswith("#")]
    return (BACKGROUND, *(rename_class(name) for name in names if name and name.casefold() != BACKGROUND))


def _is_root(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def _decode_xml(file: Path) -> str:
    """Decode an XML file with the encoding that it declares; UTF-8 if it declares none."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}), restore the file") from error
    declared = _ENCODING.match(data)
    encoding = declared[1].decode("ascii").lower() if declared else "utf-8"
    if data.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif data[:2] in (b"<\0", b"\0<"):
        encoding = "utf-16-le" if data[:1] == b"<" else "utf-16-be"
    elif encoding.startswith(("utf-16", "utf16")):
        encoding = "utf-8"  # .NET declares UTF-16 in files of single bytes, as this one is: its declaration was read
    try:
        return data.decode(WIDER_ENCODINGS.get(encoding, encoding))
    except LookupError:
        raise DataError(f"{file}: declares the unknown encoding '{encoding}', save it as UTF-8") from None
    except UnicodeDecodeError as error:
        source = "declares" if declared else "declares no encoding and therefore is in"
        raise DataError(
            f"{file}: {source} {encoding} but cannot be read so ({error.reason}), save it as UTF-8"
        ) from error


def _read_size(tree: ET.Element) -> tuple[int, int] | None:
    height, width = (to_side(tree.findtext(f"size/{side}", "")) for side in ("height", "width"))
    return None if height is None or width is None else (height, width)


def _read_object(file: Path, number: int, item: ET.Element) -> XmlObject:
    texts = [item.findtext(f"bndbox/{side}", "missing").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = (float(text) for text in texts)
        box: Box | None = (x0 - 1, y0 - 1, x1, y1)
    except ValueError:
        box = None
    text = item.findtext("difficult", "0").strip()
    difficult = 0 if text.casefold() == "unspecified" else to_flag(text)
    if difficult is None:
        raise DataError(f"{file}: object {number}: 'difficult' is '{text}', expected 0 or 1; correct it")
    name = item.findtext("name", "").strip()
    return XmlObject(
        name=rename_class(name),
        box=box,
        shown=f"[{', '.join(texts)}]",
        difficult=bool(difficult),
        written_name=name,
        segmented=item.findtext("segmented", "1").strip() != "0",
        by_model=item.findtext(MASK_SOURCE, "").strip() == MODEL,
    )
