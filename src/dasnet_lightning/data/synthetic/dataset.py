"""Synthetic data set in COCO's layout, for the demo, the tests and first experiments.

Every image depends only on (seed, split, index), so a longer data set begins with the images of a shorter one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from dasnet_lightning.data.synthetic.scenes import SyntheticScene, render_scene
from dasnet_lightning.data.synthetic.shapes import SHAPES
from dasnet_lightning.errors import DataError
from dasnet_lightning.storage.atomic import write_text

MARKER_FILE = "synthetic.json"  # written last, with the parameters
VERSION = 1
JPEG_QUALITY = 95
FOLDERS = ("annotations", "train", "val")


def write_synthetic(
    root: Path,
    num_train: int,
    num_val: int,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    render: Callable[[np.random.Generator, int], SyntheticScene] = render_scene,
) -> Path:
    """Write images of textured shapes with boxes and masks; does nothing if the same data set is already complete.

    Args:
        root: the folder to write.
        num_train: number of training images.
        num_val: number of validation images.
        size: side of the images in pixels, at least 64.
        seed: seed of all random draws.
        progress: called with (images done, all images).
        render: draws one image of a given size.

    Returns:
        `root`.

    Raises:
        DataError: a number is too small, or the folder contains something else.
    """
    if min(num_train, num_val) < 1 or size < 64:
        raise DataError(f"{root}: got {num_train} and {num_val} images of {size} px, expected at least 1, 1 and 64 px")
    root = Path(root)
    sizes = {"num_train": num_train, "num_val": num_val, "size": size}
    parameters: dict[str, int | str] = {"version": VERSION, **sizes, "seed": seed}
    if render is not render_scene:
        parameters["render"] = render.__name__
    if _is_complete(root, parameters):
        return root
    total = num_train + num_val
    for split, (name, count, offset) in enumerate((("train", num_train, 0), ("val", num_val, num_train))):
        (root / name).mkdir(parents=True, exist_ok=True)
        content = _new_content()
        for index in range(count):
            scene = render(np.random.default_rng([seed, split, index]), size)
            _add_image(content, scene, root / name, index, offset)
            if progress is not None:
                progress(offset + index + 1, total)
        write_text(root / "annotations" / f"instances_{name}.json", json.dumps(content))
    write_text(root / MARKER_FILE, json.dumps(parameters))
    return root


def _is_complete(root: Path, parameters: dict[str, int | str]) -> bool:
    """Return whether the data set is complete. Raises DataError if the folder contains anything else."""
    if not root.exists():
        return False
    marker = root / MARKER_FILE
    if marker.is_file():
        try:
            existing = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            existing = None
        if existing != parameters:
            raise DataError(
                f"{root}: contains a synthetic data set with other parameters ({existing}), choose another folder"
            )
        return True
    foreign = sorted(path.name for path in root.iterdir() if path.name not in FOLDERS)
    if foreign:
        raise DataError(f"{root}: contains {', '.join(foreign[:5])}, choose an empty folder for the synthetic data")
    return False


def _new_content() -> dict[str, list[dict[str, Any]]]:
    categories = [{"id": label, "name": name} for label, name in enumerate(SHAPES, start=1)]
    return {"images": [], "annotations": [], "categories": categories}


def _add_image(
    content: dict[str, list[dict[str, Any]]], scene: SyntheticScene, folder: Path, index: int, offset: int
) -> None:
    """Write one image and append its records; image ids continue from train to val."""
    image_id, name = offset + index + 1, f"{index + 1:06d}.jpg"
    Image.fromarray(scene.image).save(folder / name, quality=JPEG_QUALITY, subsampling=0)
    height, width = scene.image.shape[:2]
    content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
    for label, mask in zip(scene.labels, scene.masks, strict=True):
        runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        record = {
            "id": len(content["annotations"]) + 1,
            "image_id": image_id,
            "category_id": label,
            "bbox": [float(value) for value in coco_mask.toBbox(runs)],
            "area": int(coco_mask.area(runs)),
            "iscrowd": 0,
            "segmentation": {"size": [height, width], "counts": runs["counts"].decode("ascii")},
        }
        content["annotations"].append(record)
