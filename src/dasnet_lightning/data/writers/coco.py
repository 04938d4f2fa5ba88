"""Writer of COCO instances files: `annotations/instances_SPLIT.json` and the images in `SPLIT/`.

Rows of a COCO file are kept: ids, order, unknown fields and the digits of their boxes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dasnet_lightning.data.records import Source
from dasnet_lightning.data.sources.checks import check_box
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.coco_json import read_coco, read_json
from dasnet_lightning.data.sources.coco_values import to_box
from dasnet_lightning.data.writers.base import ImageLabels, ObjectLabel, Writer, original_source
from dasnet_lightning.errors import DataError
from dasnet_lightning.rle import areas
from dasnet_lightning.storage.atomic import replace_text, write_text

VOID_LOST = "images have void pixels, which become background, because COCO has no void"


class CocoWriter(Writer):
    """Writer of COCO instances files, one for each split.

    Ids of other formats are kept if they are whole numbers; otherwise images and objects are numbered from 1.
    """

    flat_names = False

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        super().__init__(root, class_names)
        self._sources: dict[str, Source] = {}
        self._labels: dict[str, list[ImageLabels]] = {}

    def image_folder(self, split: str) -> Path:
        return self.root / split

    def begin(self, split: str, source: Source) -> None:
        self._sources[split] = source
        self._labels[split] = []

    def keeps_masks(self, source: Source) -> bool:
        return _file_of(source) is not None

    def add(self, split: str, labels: ImageLabels) -> None:
        self._labels[split].append(labels)
        self.count_loss(VOID_LOST, labels.void is not None)

    def finish(self) -> None:
        others = [self._labels[split] for split, source in self._sources.items() if not self.keeps_masks(source)]
        image_keys = list(dict.fromkeys(item.image_id for images in others for item in images))
        object_keys = list(
            dict.fromkeys(_key(item, label) for images in others for item in images for label in item.objects)
        )
        image_ids = dict(zip(image_keys, _number(image_keys), strict=True))
        object_ids = dict(zip(object_keys, _number([key[1] for key in object_keys]), strict=True))
        for split, source in self._sources.items():
            file = _file_of(source)
            if file is not None:
                content = _select_rows(_read_content(file), self._labels[split])
            else:
                content = self._build(source, self._labels[split], image_ids, object_ids)
            write_text(self.root / "annotations" / f"instances_{split}.json", dump_json(content))

    def _build(
        self,
        source: Source,
        images: list[ImageLabels],
        image_ids: Mapping[str, int],
        object_ids: Mapping[tuple[str, str], int],
    ) -> dict[str, Any]:
        categories = {label: source.category_ids.get(label, label) for label in range(1, len(self.class_names))}
        return {
            "images": [
                {
                    "id": image_ids[item.image_id],
                    "file_name": item.file_name,
                    "height": item.size[0],
                    "width": item.size[1],
                }
                for item in images
            ],
            "annotations": [
                new_row(
                    label,
                    object_ids[_key(item, label)],
                    image_ids[item.image_id],
                    categories[label.label],
                    item.size,
                )
                for item in images
                for label in item.objects
            ],
            "categories": [{"id": key, "name": self.class_names[label]} for label, key in categories.items()],
        }


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
        **item.extra,
    }


def updated_row(row: Mapping[str, Any], item: ObjectLabel, size: tuple[int, int]) -> dict[str, Any]:
    """Return an annotation with the mask of an object, and its box if that changed."""
    x0, y0, x1, y1 = item.box
    numbers, _ = to_box(row.get("bbox"))
    edges = None if numbers is None else (numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3])
    same = edges is not None and item.box in (edges, check_box(edges, size, "").box)
    box = {} if same else {"bbox": [x0, y0, x1 - x0, y1 - y0]}
    return {**row, **box, **_segmentation(item, size), **item.extra}


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


def _select_rows(content: dict[str, Any], images: list[ImageLabels]) -> dict[str, Any]:
    """Return a COCO file with only the rows of these images and objects, in the order of the file."""
    names = {item.image_id: item.file_name for item in images}
    object_ids = {label.object_id for item in images for label in item.objects}
    return {
        **content,
        "images": [{**row, "file_name": names[str(row["id"])]} for row in content["images"] if str(row["id"]) in names],
        "annotations": [row for row in content["annotations"] if str(row["id"]) in object_ids],
    }


def _key(labels: ImageLabels, item: ObjectLabel) -> tuple[str, str]:
    return labels.image_id, item.object_id


def _number(ids: list[str]) -> list[int]:
    """Return the ids as whole numbers if all are distinct whole numbers, else 1, 2, ..."""
    whole = [int(item) for item in ids if item.isascii() and item.isdigit() and str(int(item)) == item]
    return whole if len(whole) == len(ids) == len(set(whole)) else list(range(1, len(ids) + 1))
