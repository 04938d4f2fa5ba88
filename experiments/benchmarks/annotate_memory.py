"""Peak memory of `annotate` with many made-up objects: the network is replaced by ellipses, all else is real.

python experiments/benchmarks/annotate_memory.py --checkpoint FILE [--images 10000] [--objects 10] [--format coco]
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dasnet_lightning.annotation import run
from dasnet_lightning.annotation.jobs import ImageJob
from dasnet_lightning.annotation.journal import ImageMasks
from dasnet_lightning.rle import encode_mask

SIZE = (480, 640)  # height, width


def write_data(root: Path, images: int, objects: int) -> None:
    """Write a COCO data set whose images are one file under many names."""
    generator = np.random.default_rng(0)
    (root / "train").mkdir(parents=True)
    first = root / "train" / "0.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(first)
    rows = []
    for image in range(images):
        if image:
            (root / "train" / f"{image}.png").hardlink_to(first)
        for number in range(objects):
            x, y = generator.integers(0, SIZE[1] - 200), generator.integers(0, SIZE[0] - 200)
            box = [int(x), int(y), int(generator.integers(20, 200)), int(generator.integers(20, 200))]
            rows.append({"id": image * objects + number + 1, "image_id": image, "category_id": 1, "bbox": box})
    content = {
        "images": [
            {"id": image, "file_name": f"{image}.png", "height": SIZE[0], "width": SIZE[1]} for image in range(images)
        ],
        "annotations": rows,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations/instances_train.json").write_text(json.dumps(content))


def draw(job: ImageJob) -> ImageMasks:
    """Return a rough ellipse in each box."""
    found = []
    for place, (x0, y0, x1, y1) in zip(job.places, job.boxes, strict=True):
        mask = np.zeros(SIZE, np.uint8)
        center, axes = (int(x0 + x1) // 2, int(y0 + y1) // 2), (int(x1 - x0) // 2, int(y1 - y0) // 2)
        cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1)
        found.append((place, encode_mask(mask.astype(bool)).decode("ascii"), 0.8))
    return ImageMasks(found)


def main() -> None:
    """Annotate and print the peak memory of this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--format", default="coco")
    args = parser.parse_args()

    def segment_parts(settings: object, parts: run.Iterator, processes: int, on_part: object) -> None:
        for number, jobs in parts:
            on_part(number, [draw(job) for job in jobs])

    run.segment_parts = segment_parts
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "data", args.images, args.objects)
        start = time.monotonic()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        options = {"format": args.format, "images": "link", "device": "cpu"}
        result = run.annotate(Path(folder) / "data", args.checkpoint, Path(folder) / "out", **options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        seconds = time.monotonic() - start
    print(f"{result.objects:,} objects, {args.format}: peak {peak:.2f} GB ({before:.2f} GB before), {seconds:.0f} s")


if __name__ == "__main__":
    main()
