"""A data set out of nothing, in COCO's layout: for the demo, the tests, and for trying things before one's own data is ready.

Every picture depends on (seed, split, index) alone, so a longer data set begins with the pictures of a shorter one.
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

MARK = "synthetic.json"
VERSION = 1
QUALITY = 95
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
    """Write pictures of textured shapes with boxes and masks; returns `root`.

    size: pixels a side, at least 64. progress: called with (pictures done, pictures). render: draws one picture of that
    size. Does nothing where the same data set is complete already. Raises DataError where the folder holds something else.
    """
    if min(num_train, num_val) < 1 or size < 64:
        raise DataError(f"{root}: {num_train} and {num_val} pictures of {size} px, expected at least 1, 1 and 64 px")
    root = Path(root)
    made: dict[str, int | str] = {
        "version": VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "size": size,
        "seed": seed,
    }
    made |= {} if render is render_scene else {"render": render.__name__}
    if _is_complete(root, made):
        return root
    total = num_train + num_val
    for split, (name, count, offset) in enumerate((("train", num_train, 0), ("val", num_val, num_train))):
        (root / name).mkdir(parents=True, exist_ok=True)
        content = _new_content()
        for index in range(count):
            scene = render(np.random.default_rng([seed, split, index]), size)
            _add(content, scene, root / name, index, offset)
            if progress is not None:
                progress(offset + index + 1, total)
        write_text(root / "annotations" / f"instances_{name}.json", json.dumps(content))
    write_text(root / MARK, json.dumps(made))
    return root


def _is_complete(root: Path, made: dict[str, int | str]) -> bool:
    """Whether the data set is there. Raises DataError where the folder holds another one, or files of somebody else."""
    if not root.exists():
        return False
    mark = root / MARK
    if mark.is_file():
        try:
            found = json.loads(mark.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != made:
            raise DataError(
                f"{root}: holds a synthetic data set with other parameters ({found}), choose another folder"
            )
        return True
    strange = sorted(path.name for path in root.iterdir() if path.name not in FOLDERS)
    if strange:
        raise DataError(f"{root}: holds {', '.join(strange[:5])}, choose an empty folder for the synthetic data")
    return False


def _new_content() -> dict[str, list[dict[str, Any]]]:
    categories = [{"id": label, "name": name} for label, name in enumerate(SHAPES, start=1)]
    return {"images": [], "annotations": [], "categories": categories}


def _add(
    content: dict[str, list[dict[str, Any]]], scene: SyntheticScene, folder: Path, index: int, offset: int
) -> None:
    """Write one picture and append its records; image ids go on from train to val."""
    image_id, name = offset + index + 1, f"{index + 1:06d}.jpg"
    Image.fromarray(scene.image).save(folder / name, quality=QUALITY, subsampling=0)
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
