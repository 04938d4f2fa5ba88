"""What `Segmenter.segment_many` saves over a loop: `python experiments/benchmarks/batched_inference.py --out FOLDER`.

Files on disk are segmented in rounds, all ways taking turns in one process:

* loop: `segment` image after image, with one thread of torch;
* many_1: `segment_many` with one thread of torch and no thread that decodes;
* many_ahead: `segment_many` with one thread of torch and two threads that decode;
* many_2: `segment_many` with two threads of torch and two threads that decode.

Ratios are of the seconds of the wall clock in one round, the loop's over the other's. Best and median of all rounds are
given, because other work on the machine disturbs single rounds: two threads of torch wait for each other, and on a machine
whose processors are busy they are slower than one. `equal` says whether the results are those of the loop:
labels and masks the same, boxes and scores within 1e-5 of the image's longer side and of 1.

The network is untrained, with as many detections as a score threshold lets through; a checkpoint may be given. Without
--data the photographs are made up, as JPEG files.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from harness import setting, write_results
from PIL import Image

from dasnet_lightning.data.images import IMAGE_SUFFIXES
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.inference.segmenter import Segmenter, load
from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.nn.heads import SemanticHead

Way = Callable[[], list[Segmentation]]


def write_photographs(folder: Path, count: int, size: int) -> list[Path]:
    """Write JPEG files of blurred noise with the sides of photographs."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        small = generator.integers(0, 256, (size // 16, size // 12, 3), dtype=np.uint8)
        paths.append(folder / f"{number:04}.jpg")
        Image.fromarray(small).resize((size * 4 // 3, size), Image.Resampling.BICUBIC).save(paths[-1], quality=92)
    return paths


def build_segmenter(network: str, objects: int) -> Segmenter:
    """Load a checkpoint, or build an untrained network that segments a number of objects in each image."""
    if network.endswith(".ckpt"):
        return load(network)
    torch.manual_seed(0)
    names = ("background", *(f"class {number}" for number in range(1, 4)))
    model = build_dasnet(len(names), detector=network, decoder="zoom", head=SemanticHead)
    options = InstanceOptions(score_threshold=0.0, lowest_score=0.0, max_detections=objects)
    return Segmenter(model, names, options)


def make_ways(segmenter: Segmenter, paths: Sequence[Path], batch_size: int) -> dict[str, Way]:
    """Return the ways to segment all files."""

    def run(threads: int, segment: Way) -> Way:
        def call() -> list[Segmentation]:
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            return segment()

        return call

    def many(workers: int) -> Way:
        return lambda: list(segmenter.segment_many(paths, batch_size=batch_size, workers=workers))

    return {
        "loop": run(1, lambda: [segmenter.segment(path) for path in paths]),
        "many_1": run(1, many(0)),
        "many_ahead": run(1, many(2)),
        "many_2": run(2, many(2)),
    }


def are_equal(one: Segmentation, other: Segmentation) -> bool:
    """Return whether two results agree, see above."""
    if len(one) != len(other) or not torch.equal(one.labels, other.labels):
        return False
    boxes = bool(((one.boxes - other.boxes).abs() <= 1e-5 * max(one.image.shape)).all())
    return (
        boxes and bool(((one.scores - other.scores).abs() <= 1e-5).all()) and bool(torch.equal(one.masks, other.masks))
    )


def measure(network: str, paths: Sequence[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Return the line of one network."""
    segmenter = build_segmenter(network, args.objects)
    ways = make_ways(segmenter, paths, args.batch_size)
    results = {name: way() for name, way in ways.items()}  # prepares the kernels
    objects = sum(map(len, results["loop"])) / len(paths)
    equal = {
        name: sum(are_equal(*pair) for pair in zip(results["loop"], found, strict=True))
        for name, found in results.items()
    }
    results.clear()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    line: dict[str, Any] = {"network": Path(network).name, "images": len(paths), "objects": round(objects, 1)}
    line |= {f"{name}_ms": round(1e3 * min(spent) / len(paths), 1) for name, spent in seconds.items()}
    for name in ("many_1", "many_ahead", "many_2"):
        ratios = [loop / other for loop, other in zip(seconds["loop"], seconds[name], strict=True)]
        line |= {f"{name}_best": round(max(ratios), 2), f"{name}_median": round(statistics.median(ratios), 2)}
        line[f"{name}_equal"] = f"{equal[name]} of {len(paths)}"
    return line | {"rounds": {name: [round(value, 3) for value in spent] for name, spent in seconds.items()}}


def main() -> None:
    """Print one JSON line for each network; write batched_inference.json and batched_inference.md where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["ssd320_mobilenet_v2"], metavar="NAME")
    parser.add_argument("--data", type=Path, help="a folder of photographs (default: made-up ones)")
    parser.add_argument("--size", type=int, default=960, help="height of the made-up photographs")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--objects", type=int, default=5, help="objects in each image")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        if args.data is None:
            paths = write_photographs(Path(scratch), args.images, args.size)
        else:
            files = sorted(path for path in args.data.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            paths = files[: args.images]
        for network in args.networks:
            with torch.inference_mode():
                line = measure(network, paths, args)
            print(json.dumps(line), flush=True)
            lines.append(line)
    torch.set_num_threads(1)
    write_results(
        args.out,
        "batched_inference",
        setting(torch.device("cpu"), clock="perf_counter", rounds=[line.pop("rounds") for line in lines]),
        lines,
    )


if __name__ == "__main__":
    main()
