"""Builders of small VOC, SBD and COCO data sets on disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

SIZE = (30, 40)  # height, width of the small pictures


@dataclass(frozen=True)
class VocObject:
    """One <object>; the box is as VOC writes it: 1-based, inclusive."""

    name: str
    box: tuple[Any, Any, Any, Any]
    difficult: int = 0


def write_picture(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_index_picture(path: Path, indices: np.ndarray) -> Path:
    """A palette picture of object indices, as in SegmentationObject."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(indices.astype(np.uint8), mode=None).convert("L")
    palette = picture.convert("P")
    palette.putdata(indices.astype(np.uint8).ravel().tolist())
    palette.save(path)
    return path


def filled_indices(boxes: Sequence[tuple[int, int, int, int]], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Index picture in which object k fills its box (1-based, inclusive) but for a void rim of one pixel."""
    indices = np.zeros(size, dtype=np.uint8)
    for place, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        indices[y0 - 1 : y1, x0 - 1 : x1] = 255
        indices[y0 : y1 - 1, x0 : x1 - 1] = place
    return indices


VOC_DATABASE = "The VOC2012 Database"


def xml_text(objects: Sequence[VocObject], size: tuple[int, int] | None = SIZE, database: str = VOC_DATABASE) -> str:
    """The text of one VOC annotation file."""
    sides = "" if size is None else f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    parts = "".join(
        f"<object><name>{escape(item.name)}</name><difficult>{item.difficult}</difficult><bndbox>"
        + "".join(
            f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True)
        )
        + "</bndbox></object>"
        for item in objects
    )
    source = f"<source><database>{database}</database></source>"
    return f"<annotation><filename>x.jpg</filename>{source}{sides}{parts}</annotation>"


def make_voc(
    root: Path,
    images: Mapping[str, Sequence[VocObject]],
    masked: Sequence[str] = (),
    lists: Mapping[str, Sequence[str]] | None = None,
    folder: str = "Main",
    database: str = VOC_DATABASE,
) -> Path:
    """A VOC root with these images; `masked` have a SegmentationObject picture that fits their boxes."""
    for name in ("Annotations", "JPEGImages", "SegmentationObject", f"ImageSets/{folder}"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for seed, (image_id, objects) in enumerate(images.items()):
        write_picture(root / "JPEGImages" / f"{image_id}.jpg", seed=seed)
        (root / "Annotations" / f"{image_id}.xml").write_text(xml_text(objects, database=database), encoding="utf-8")
    for image_id in masked:
        boxes = [tuple(map(int, item.box)) for item in images[image_id]]
        write_index_picture(root / "SegmentationObject" / f"{image_id}.png", filled_indices(boxes))  # type: ignore[arg-type]
    for split, ids in ({"train": list(images)} if lists is None else lists).items():
        (root / "ImageSets" / folder / f"{split}.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    return root


def annotation(number: int, image: int = 1, category: int = 1, **fields: Any) -> dict[str, Any]:
    """One COCO annotation: a box of 10x10 at (5, 5), without a mask unless one is given."""
    return {"id": number, "image_id": image, "category_id": category, "bbox": [5, 5, 10, 10], "iscrowd": 0, **fields}


def square_polygon(x: float = 5, y: float = 5, side: float = 10) -> list[list[float]]:
    """A polygon that nearly fills the usual box, with a corner cut so that it is not a rectangle."""
    return [[x, y, x + side, y, x + side, y + side, x + 2, y + side, x, y + side - 2]]


def coco_content(
    annotations: Sequence[Mapping[str, Any]],
    num_images: int = 2,
    categories: Sequence[tuple[int, str]] = ((1, "cat"), (2, "dog")),
) -> dict[str, Any]:
    """The content of an instances file with images a1.jpg, a2.jpg, ..."""
    images = [
        {"id": number, "file_name": f"a{number}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for number in range(1, num_images + 1)
    ]
    rows = [{"id": key, "name": name} for key, name in categories]
    return {"images": images, "annotations": list(annotations), "categories": rows}


def make_coco(
    root: Path, content: Mapping[str, Any], file: str = "annotations/instances_train.json", images: str = "train"
) -> Path:
    """Write an instances file and its pictures; returns the file."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    for image in content["images"]:
        write_picture(root / images / image["file_name"], seed=hash_seed(image["file_name"]))
    return path


def hash_seed(name: str) -> int:
    """A seed from a name, the same in every run."""
    return sum(name.encode())


def make_sbd(
    root: Path,
    images: Mapping[str, Sequence[tuple[int, tuple[int, int, int, int]]]],
    lists: Mapping[str, Sequence[str]] | None = None,
    compressed: bool = True,
) -> Path:
    """An SBD root with these images; each object is (class number, rectangle it fills, as edges), later ones on top."""
    for name in ("img", "inst", "cls"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for seed, (image_id, objects) in enumerate(images.items()):
        write_picture(root / "img" / f"{image_id}.jpg", seed=seed)
        picture = np.zeros(SIZE, dtype=np.uint8)
        for place, (_, (x0, y0, x1, y1)) in enumerate(objects, start=1):
            picture[y0:y1, x0:x1] = place
        write_instances(root, image_id, picture, [number for number, _ in objects], compressed)
    for split, ids in ({"train": list(images)} if lists is None else lists).items():
        (root / f"{split}.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    return root


def write_instances(
    root: Path, image_id: str, picture: np.ndarray, numbers: Sequence[int], compressed: bool = True
) -> Path:
    """The two .mat files of one image; the boundaries are sparse maps in a cell array, as in SBD's. Returns inst's."""
    boundaries = np.empty((len(numbers), 1), dtype=object)
    for place in range(len(numbers)):
        boundaries[place, 0] = csc_matrix(picture == place + 1)
    categories = np.array(numbers, dtype=np.uint8).reshape(-1, 1)
    classes = np.concatenate(([0], numbers)).astype(np.uint8)[np.minimum(picture, len(numbers))]
    content = {"Segmentation": picture, "Categories": categories, "Boundaries": boundaries}
    savemat(root / "inst" / f"{image_id}.mat", {"GTinst": content}, do_compression=compressed)
    savemat(root / "cls" / f"{image_id}.mat", {"GTcls": {"Segmentation": classes}}, do_compression=compressed)
    return root / "inst" / f"{image_id}.mat"
