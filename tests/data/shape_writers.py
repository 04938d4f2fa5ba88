"""The same objects written in every format that is read, for the tests that compare the readers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_builders import VocObject, xml_text
from shape_builders import pictures

SIZE = (30, 40)  # height, width
NAMES = ("cat", "dog")


@dataclass(frozen=True)
class Item:
    """One object: a polygon (x, y pairs in pixels) is a mask whose extent is the box; None is a box without a mask."""

    label: int  # from 1
    box: tuple[float, float, float, float]  # xyxy in pixels
    polygon: tuple[tuple[float, float], ...] | None = None

    @property
    def flat(self) -> list[float]:
        return [value for point in self.polygon or () for value in point]


Scene = Sequence[Sequence[Item]]  # the objects of each image


def name_of(number: int) -> str:
    return f"im{number}"


def write_coco(root: Path, scene: Scene) -> None:
    pictures(root / "images", *(f"{name_of(number)}.png" for number in range(len(scene))))
    images = [
        {"id": n, "file_name": f"{name_of(n)}.png", "height": SIZE[0], "width": SIZE[1]} for n in range(len(scene))
    ]
    rows = [
        {"id": 0, "image_id": number, "category_id": item.label, "iscrowd": 0,
         "bbox": [item.box[0], item.box[1], item.box[2] - item.box[0], item.box[3] - item.box[1]],
         **({"segmentation": [item.flat]} if item.polygon else {})}
        for number, items in enumerate(scene) for item in items
    ]  # fmt: skip
    for place, row in enumerate(rows):
        row["id"] = place
    categories = [{"id": label, "name": name} for label, name in enumerate(NAMES, start=1)]
    (root / "all.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))


def write_yolo(root: Path, scene: Scene) -> None:
    height, width = SIZE
    (root / "labels").mkdir()
    for number, items in enumerate(scene):
        pictures(root, f"images/{name_of(number)}.png")
        rows = []
        for item in items:
            x0, y0, x1, y1 = item.box
            values = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
            if item.polygon:
                values = [share for x, y in item.polygon for share in (x / width, y / height)]
            rows.append(" ".join([str(item.label - 1), *map(repr, values)]))
        (root / "labels" / f"{name_of(number)}.txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text(f"train: images\nnc: 2\nnames: {list(NAMES)}\n")


def write_labelme(root: Path, scene: Scene) -> None:
    for number, items in enumerate(scene):
        pictures(root, f"{name_of(number)}.png")
        shapes = [
            {"label": NAMES[item.label - 1], "group_id": None, "shape_type": "polygon" if item.polygon else "rectangle",
             "points": [list(point) for point in item.polygon] if item.polygon else [item.box[:2], item.box[2:]]}
            for item in items
        ]  # fmt: skip
        value = {"shapes": shapes, "imagePath": f"{name_of(number)}.png", "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
        (root / f"{name_of(number)}.json").write_text(json.dumps(value))


def write_cvat(root: Path, scene: Scene) -> None:
    images = []
    for number, items in enumerate(scene):
        pictures(root, f"images/{name_of(number)}.png")
        shapes = ""
        for item in items:
            if item.polygon:
                points = ";".join(f"{x!r},{y!r}" for x, y in item.polygon)
                shapes += f'<polygon label="{NAMES[item.label - 1]}" points="{points}"/>'
            else:
                sides = zip(("xtl", "ytl", "xbr", "ybr"), item.box, strict=True)
                written = " ".join(f'{key}="{value!r}"' for key, value in sides)
                shapes += f'<box label="{NAMES[item.label - 1]}" {written}/>'
        images.append(f'<image id="{number}" name="{name_of(number)}.png" width="40" height="30">{shapes}</image>')
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    text = f"<annotations><meta><labels>{labels}</labels></meta>{''.join(images)}</annotations>"
    (root / "annotations.xml").write_text(text)


def write_label_studio(root: Path, scene: Scene) -> None:
    tasks = []
    for number, items in enumerate(scene):
        pictures(root, f"{name_of(number)}.png")
        regions = []
        for place, item in enumerate(items):
            x0, y0, x1, y1 = item.box
            kind = "polygonlabels" if item.polygon else "rectanglelabels"
            box = {"x": x0 / 0.4, "y": y0 / 0.3, "width": (x1 - x0) / 0.4, "height": (y1 - y0) / 0.3}
            shape = {"points": [[x / 0.4, y / 0.3] for x, y in item.polygon]} if item.polygon else box
            value = {**shape, kind: [NAMES[item.label - 1]]}
            size = {"original_width": SIZE[1], "original_height": SIZE[0]}
            regions.append({"id": str(place), "type": kind, "value": value, **size})
        tasks.append({"id": number, "data": {"image": f"{name_of(number)}.png"}, "annotations": [{"result": regions}]})
    (root / "tasks.json").write_text(json.dumps(tasks))


def write_voc(root: Path, scene: Scene) -> None:
    """Boxes alone: VOC's masks are pictures, which other tests compare."""
    for number, items in enumerate(scene):
        pictures(root, f"{name_of(number)}.png")
        objects = [
            VocObject(NAMES[item.label - 1], (item.box[0] + 1, item.box[1] + 1, *item.box[2:])) for item in items
        ]
        (root / f"{name_of(number)}.xml").write_text(xml_text(objects))
