"""Writer of CVAT XML 1.1 "for images": `annotations.xml`, and the images of each split in `images/SPLIT/`.

Each part of a mask is a polygon; parts of one object share a group_id. An object without a mask is a box. Elements of a
CVAT file are kept: what did not change stays as it is.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

from dasnet_lightning.data.records import Source
from dasnet_lightning.data.sources.model_masks import MODEL, is_model_element
from dasnet_lightning.data.sources.shapes import ShapeSource
from dasnet_lightning.data.writers.base import ImageLabels, ObjectLabel, Writer, differs_from_box, original_source
from dasnet_lightning.data.writers.spool import TextSpool, write_parts
from dasnet_lightning.errors import DataError

TAGS = ("box", "polygon", "mask", "ellipse")
IGNORE_LOST = "crowd or difficult objects become ordinary ones, because CVAT has no flag for them"
VOID_LOST = "images have void pixels, which become background, because CVAT has no void"
BOX_LOST = "boxes differ from their masks by more than a pixel, CVAT keeps the extent of the mask"


class CvatWriter(Writer):
    """Writer of CVAT's XML; images go to a temporary file at once, so that memory holds none of the masks."""

    flat_names = False

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        super().__init__(root, class_names)
        self._elements: dict[str, ET.Element] = {}
        self._meta: ET.Element | None = None
        self._spool = TextSpool()
        self._count = 0
        self._splits: list[str] = []

    def image_folder(self, split: str) -> Path:
        return self.root / "images" / split

    def begin(self, split: str, source: Source) -> None:
        self._splits.append(split)
        self._elements = {}
        origin = original_source(source)
        if not isinstance(origin, ShapeSource) or origin.format != "cvat":
            return
        for file in dict.fromkeys(origin.files):
            tree = _read_annotations(file)
            if tree is None:
                continue
            meta = tree.find("meta")
            self._meta = meta if self._meta is None else self._meta
            self._elements |= {element.get("name", ""): element for element in tree.iterfind("image")}

    def add(self, split: str, labels: ImageLabels) -> None:
        old = self._find_element(labels)
        if old is None:
            name = f"{split}/{labels.file_name}"
            element = ET.Element("image", {"id": str(self._count), "name": name, "subset": split})
            shapes = [
                shape
                for number, item in enumerate(labels.objects, start=1)
                for shape in self._draw(labels, item, number)
            ]
            element.extend(shapes)
        else:
            element = self._edit(old, labels)
        element.set("width", str(labels.size[1]))
        element.set("height", str(labels.size[0]))
        self._count += 1
        ET.indent(element, level=1)
        self._spool.add("  " + ET.tostring(element, encoding="unicode").rstrip() + "\n")
        self.count_loss(IGNORE_LOST, sum(item.ignore for item in labels.objects))
        self.count_loss(VOID_LOST, labels.void is not None)
        masked = [item for item in labels.objects if item.mask is not None]
        self.count_loss(BOX_LOST, sum(differs_from_box(labels.outlines(item), item.box) for item in masked))

    def finish(self) -> None:
        write_parts(self.root / "annotations.xml", self._build_parts())
        self._spool.close()

    def _build_parts(self) -> Iterator[str]:
        yield '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        meta = _new_meta(self.class_names[1:]) if self._meta is None else self._meta
        ET.indent(meta, level=1)
        yield "  " + ET.tostring(meta, encoding="unicode").rstrip() + "\n"
        for number in range(len(self._spool)):
            yield self._spool.get(number)
        yield "</annotations>\n"

    def _find_element(self, labels: ImageLabels) -> ET.Element | None:
        """Return the element that an image was read from; image ids are its name without the suffix."""
        suffix = Path(labels.file_name).suffix
        return next(
            (self._elements[name] for name in (labels.image_id + suffix, labels.image_id) if name in self._elements),
            None,
        )

    def _edit(self, image: ET.Element, labels: ImageLabels) -> ET.Element:
        """Return an <image> with the changed objects in the place of their first shape."""
        shapes = [element for element in image if element.tag in TAGS]
        groups = [int(text) for element in shapes if (text := element.get("group_id", "")).isdecimal()]
        free = 1 + max(groups, default=0)
        new: dict[ET.Element, list[ET.Element]] = {}
        for item in labels.objects:
            if not item.changed:
                continue
            first = shapes[int(item.object_id.rsplit("/", 1)[1])]
            drawn = self._draw(labels, item, free)
            free += len(drawn) > 1
            if first.get("group_id", "0") not in ("0", ""):
                same = [other for other in shapes if _group(other) == _group(first)]
                new |= {other: [] for other in same}
            for shape in drawn:
                _keep_values(shape, first)
            new[first] = drawn
        edited = ET.Element("image", dict(image.attrib))
        edited.extend([shape for old in image for shape in new.get(old, [old])])
        return edited

    def _draw(self, labels: ImageLabels, item: ObjectLabel, group: int) -> list[ET.Element]:
        name = self.class_names[item.label]
        common = {
            "label": name,
            "source": "auto" if item.by_model and item.mask is not None else "manual",
            "occluded": "0",
        }
        x0, y0, x1, y1 = item.box
        if item.mask is None:
            corners = {"xtl": f"{x0:.12g}", "ytl": f"{y0:.12g}", "xbr": f"{x1:.12g}", "ybr": f"{y1:.12g}"}
            return [ET.Element("box", {**common, **corners, "z_order": "0"})]
        rings = labels.outlines(item)
        extra = {"group_id": str(group)} if len(rings) > 1 else {}
        drawn = []
        for ring in rings:
            points = ";".join(f"{x:.12g},{y:.12g}" for x, y in ring.tolist())
            shape = ET.Element("polygon", {**common, "points": points, "z_order": "0", **extra})
            if item.by_model:
                _set_attribute(shape, "source", MODEL)
                if item.quality is not None:
                    _set_attribute(shape, "quality", str(item.quality))
            drawn.append(shape)
        return drawn


def _keep_values(shape: ET.Element, old: ET.Element) -> None:
    """Copy the attributes of a replaced shape, except those that say who made it."""
    shape.set("label", old.get("label", ""))
    for key in ("occluded", "z_order"):
        shape.set(key, old.get(key, shape.get(key, "0")))
    marked = is_model_element(old)
    own = ("source", "quality") if marked else ()
    for number, attribute in enumerate(item for item in old.iterfind("attribute") if item.get("name") not in own):
        shape.insert(number, attribute)


def _set_attribute(shape: ET.Element, name: str, value: str) -> None:
    child = ET.SubElement(shape, "attribute", {"name": name})
    child.text = value


def _group(element: ET.Element) -> tuple[str | None, str | None]:
    return element.get("label"), element.get("group_id")


def _new_meta(names: Sequence[str]) -> ET.Element:
    """Return <meta> with the labels and the attributes of masks that a model made, which CVAT drops if undeclared."""
    meta = ET.Element("meta")
    labels = ET.SubElement(ET.SubElement(meta, "task"), "labels")
    for name in names:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = name
        attributes = ET.SubElement(label, "attributes")
        for attribute in ("source", "quality"):
            item = ET.SubElement(attributes, "attribute")
            for key, value in (
                ("name", attribute),
                ("mutable", "False"),
                ("input_type", "text"),
                ("default_value", ""),
            ):
                ET.SubElement(item, key).text = value
    return meta


def _read_annotations(file: Path) -> ET.Element | None:
    """Return the <annotations> of a file that was read before; None for another file of the data set."""
    if file.suffix.lower() != ".xml":
        return None
    try:
        tree = ET.fromstring(file.read_bytes())
    except (OSError, ET.ParseError) as error:
        raise DataError(f"{file}: cannot be read again ({error}), restore the file") from error
    return tree if tree.tag == "annotations" else None
