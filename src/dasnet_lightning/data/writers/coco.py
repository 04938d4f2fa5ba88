"""Writer of COCO instances files: `annotations/instances_SPLIT.json` and the images in `SPLIT/`.

Rows of a COCO file are kept: ids, order, unknown fields and the digits of their boxes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dasnet_lightning.data.records import Source
from dasnet_lightning.data.sources.checks import check_box
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.coco_json import read_coco, read_json
from dasnet_lightning.data.sources.coco_values import to_box
from dasnet_lightning.data.sources.model_masks import MODEL
from dasnet_lightning.data.writers.base import ImageLabels, ObjectLabel, Writer, original_source
from dasnet_lightning.data.writers.spool import TextSpool, write_json_parts, write_parts
from dasnet_lightning.errors import DataError
from dasnet_lightning.rle import areas
from dasnet_lightning.storage.atomic import replace_text, write_text

VOID_LOST = "images have void pixels, which become background, because COCO has no void"


class CocoWriter(Writer):
    """Writer of COCO instances files, one for each split.

    Ids of other formats are kept if they are whole numbers; otherwise images and objects are numbered from 1. Annotations
    go to a temporary file at once, so that memory holds ids and no masks.
    """

    flat_names = False

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        super().__init__(root, class_names)
        self._splits: dict[str, _Split] = {}

    def image_folder(self, split: str) -> Path:
        return self.root / split

    def begin(self, split: str, source: Source) -> None:
        file = _file_of(source)
        content = None if file is None else _read_content(file)
        self._splits[split] = _Split(source, content)

    def keeps_masks(self, source: Source) -> bool:
        return _file_of(source) is not None

    def add(self, split: str, labels: ImageLabels) -> None:
        self._splits[split].add(labels)
        self.count_loss(VOID_LOST, labels.void is not None)

    def finish(self) -> None:
        others = [split for split in self._splits.values() if split.content is None]
        image_keys = list(dict.fromkeys(image_id for split in others for image_id, _, _ in split.images))
        object_keys = list(dict.fromkeys(key for split in others for key in split.keys))
        image_ids = dict(zip(image_keys, _number(image_keys), strict=True))
        object_ids = dict(zip(object_keys, _number([key[1] for key in object_keys]), strict=True))
        for name, split in self._splits.items():
            rows = split.build_rows(image_ids, object_ids)
            parts = write_json_parts(split.build_content(image_ids, self.class_names), "annotations", rows)
            write_parts(self.root / "annotations" / f"instances_{name}.json", parts)
            split.spool.close()


class _Split:
    """Images and annotations of one split while they are collected.

    Attributes:
        source: the data set.
        content: the COCO file whose rows are kept; None for other formats.
        images: id, file name and (height, width) of each image.
        keys: image and object id of each annotation in the temporary file, without such content.
        spool: texts of the new annotations.
    """

    def __init__(self, source: Source, content: dict[str, Any] | None) -> None:
        self.source, self.content = source, content
        self.images: list[tuple[str, str, tuple[int, int]]] = []
        self.keys: list[tuple[str, str]] = []
        self.spool = TextSpool()
        rows = [] if content is None else content["annotations"]
        self._rows = {str(row["id"]): index for index, row in enumerate(rows)}
        self._kept: dict[str, int] = {}  # place of the new text of each object; -1 keeps its row

    def add(self, labels: ImageLabels) -> None:
        self.images.append((labels.image_id, labels.file_name, labels.size))
        for item in labels.objects:
            if self.content is None:
                self.keys.append((labels.image_id, item.object_id))
                category = self.source.category_ids.get(item.label, item.label)
                row = new_row(item, 0, 0, category, labels.size)
                self.spool.add(json.dumps(dict(list(row.items())[2:]), ensure_ascii=False)[1:])
            elif item.changed:
                row = updated_row(self.content["annotations"][self._rows[item.object_id]], item, labels.size)
                self._kept[item.object_id] = self.spool.add(json.dumps(row, ensure_ascii=False))
            else:
                self._kept[item.object_id] = -1

    def build_rows(self, image_ids: Mapping[str, int], object_ids: Mapping[tuple[str, str], int]) -> Iterator[str]:
        """Yield the annotations as JSON texts, those of a kept file in its order."""
        if self.content is None:
            for number, key in enumerate(self.keys):
                yield f'{{"id": {object_ids[key]}, "image_id": {image_ids[key[0]]}, {self.spool.get(number)}'
            return
        for row in self.content["annotations"]:
            place = self._kept.get(str(row["id"]))
            if place is not None:
                yield json.dumps(row, ensure_ascii=False) if place < 0 else self.spool.get(place)

    def build_content(self, image_ids: Mapping[str, int], class_names: Sequence[str]) -> dict[str, Any]:
        """Return the file without its annotations."""
        if self.content is not None:
            names = {image_id: name for image_id, name, _ in self.images}
            rows = [row for row in self.content["images"] if str(row["id"]) in names]
            images = [{**row, "file_name": names[str(row["id"])]} for row in rows]
            return {**self.content, "images": images, "annotations": []}
        images = [
            {"id": image_ids[image_id], "file_name": name, "height": size[0], "width": size[1]}
            for image_id, name, size in self.images
        ]
        categories = {label: self.source.category_ids.get(label, label) for label in range(1, len(class_names))}
        table = [{"id": key, "name": class_names[label]} for label, key in categories.items()]
        return {"images": images, "annotations": [], "categories": table}


class CocoEditor:
    """Editor of an instances file, image by image; all that is not updated stays as it is.

    Args:
        file: a COCO instances file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content = _read_content(file)
        self._rows = {str(row["id"]): index for index, row in enumerate(self.content["annotations"])}
        self._kept = False

    def update(self, labels: ImageLabels) -> None:
        """Replace the masks and boxes of the objects of an image that are marked as changed.

        Raises:
            DataError: an object is not in the file.
        """
        for item in labels.objects:
            if not item.changed:
                continue
            if item.object_id not in self._rows:
                raise DataError(f"{self.file}: has no annotation {item.object_id}, read the file again")
            index = self._rows[item.object_id]
            self.content["annotations"][index] = updated_row(self.content["annotations"][index], item, labels.size)

    def save(self) -> None:
        """Replace the file atomically; the first call keeps the original as `FILE.previous`."""
        write = write_text if self._kept else replace_text
        write(self.file, dump_json(self.content))
        self._kept = True


def new_row(
    item: ObjectLabel, number: int, image_id: int, category_id: int | str, size: tuple[int, int]
) -> dict[str, Any]:
    """Return the annotation of an object; one without a mask has an empty segmentation."""
    x0, y0, x1, y1 = item.box
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": int(item.ignore),
        **_segmentation(item, size),
        **_marks(item),
        **item.extra,
    }


def updated_row(row: Mapping[str, Any], item: ObjectLabel, size: tuple[int, int]) -> dict[str, Any]:
    """Return an annotation with the mask of an object, and its box if that changed."""
    x0, y0, x1, y1 = item.box
    numbers, _ = to_box(row.get("bbox"))
    edges = None if numbers is None else (numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3])
    same = edges is not None and item.box in (edges, check_box(edges, size, "").box)
    box = {} if same else {"bbox": [x0, y0, x1 - x0, y1 - y0]}
    kept = {key: value for key, value in row.items() if row.get("source") != MODEL or key not in ("source", "score")}
    return {**kept, **box, **_segmentation(item, size), **_marks(item), **item.extra}


def _marks(item: ObjectLabel) -> dict[str, Any]:
    """Return the fields of a mask that a model made."""
    if not item.by_model or item.mask is None:
        return {}
    return {"source": MODEL} if item.quality is None else {"source": MODEL, "score": item.quality}


def dump_json(content: Any) -> str:
    """Return a JSON text on one line, as COCO's own files are."""
    return json.dumps(content, ensure_ascii=False) + "\n"


def _segmentation(item: ObjectLabel, size: tuple[int, int]) -> dict[str, Any]:
    x0, y0, x1, y1 = item.box
    if item.mask is None:
        return {"segmentation": [], "area": (x1 - x0) * (y1 - y0)}
    counts = {"size": list(size), "counts": item.mask.decode("ascii")}
    return {"segmentation": counts, "area": int(areas([item.mask], size)[0])}


def _file_of(source: Source) -> Path | None:
    """Return the file that all rows of a source come from; None for other formats and for one file per image."""
    origin = original_source(source)
    return origin.annotation_file if isinstance(origin, COCOSource) and origin.annotation_file.is_file() else None


def _read_content(file: Path) -> dict[str, Any]:
    """Return an instances file with the rows as they are read: numbered, with values of the right types."""
    rows = read_coco(file)
    tables = {"images": rows.images, "annotations": rows.annotations, "categories": rows.categories}
    return {**read_json(file), **tables}


def _number(ids: list[str]) -> list[int]:
    """Return the ids as whole numbers if all are distinct whole numbers, else 1, 2, ..."""
    whole = [int(item) for item in ids if item.isascii() and item.isdigit() and str(int(item)) == item]
    return whole if len(whole) == len(ids) == len(set(whole)) else list(range(1, len(ids) + 1))
