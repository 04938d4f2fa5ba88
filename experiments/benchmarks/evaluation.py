"""What instance evaluation costs: `python experiments/benchmarks/evaluation.py --out FOLDER`.

Ours (metrics.instance.InstanceAP) against torchmetrics' MeanAveragePrecision(iou_type="segm"), each with every evaluator
that is installed, on the same made-up images: wobbly ellipses as objects, and for each a prediction whose place, size and
outline are a little off; some objects are missed, some found twice or as another class.

* update: from dense masks to what is kept, medians of repetitions in one process in which all sides take turns batch by
  batch. Ours is charged with the run lengths of the true masks as well, which the data set makes;
* compute: from what is kept to the figures, medians, taking turns. Ours also gives VOC's mAP^r at three thresholds;
  seconds are those of the processor, which other work on the machine does not stretch; the JSON has the wall's too;
* memory: each side alone in a process of its own that makes one image at a time: the peak of resident memory above what
  was resident after a small evaluation had warmed the process up, and what is kept between update and compute.

torchmetrics is given COCO's own thresholds in double precision; its defaults are rounded to float32, which moves its AP.
"""

import argparse
import ctypes
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchmetrics.detection import MeanAveragePrecision

from dasnet_lightning.metrics.coco_evaluators import Evaluator
from dasnet_lightning.metrics.instance import InstanceAP
from dasnet_lightning.rle import encode_mask
from dasnet_lightning.types import Detections, GroundTruth, Prediction, Target

BATCH = 8
FIGURES = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}  # our names and those of torchmetrics
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
RECALL_THRESHOLDS = np.linspace(0, 1, 101).tolist()


@dataclass(frozen=True, eq=False)
class Image:
    """Dense masks of one image: what is there and what was found."""

    labels: torch.Tensor
    masks: torch.Tensor
    found: Prediction


@dataclass(frozen=True, eq=False)
class Side:
    """One way to evaluate: takes images by their ids, then answers with the three means of COCO."""

    update: Callable[[Mapping[str, Image]], None]
    compute: Callable[[], Mapping[str, float]]


def draw(size: int, shape: np.ndarray) -> np.ndarray:
    """A mask from centre x, y, radii, and the strength and phase of a wobble of the outline."""
    x, y, wide, tall, wobble, phase = shape.astype(np.float32)
    low_x, low_y = (max(0, int(centre - radius * (1 + wobble))) for centre, radius in ((x, wide), (y, tall)))
    rows = np.arange(low_y, min(size, y + tall * (1 + wobble) + 1), dtype=np.float32)[:, None]
    columns = np.arange(low_x, min(size, x + wide * (1 + wobble) + 1), dtype=np.float32)
    down, across = (rows - y) / tall, (columns - x) / wide
    outline = 1 + wobble * np.sin(5 * np.arctan2(down, across) + phase)
    mask = np.zeros((size, size), dtype=bool)
    mask[low_y : low_y + len(rows), low_x : low_x + len(columns)] = down**2 + across**2 < outline**2
    return mask


def make_image(seed: int, size: int, instances: int, classes: int) -> Image:
    """One image with its predictions."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, classes + 1, instances)
    shapes = np.stack(
        [
            *rng.uniform(0.1 * size, 0.9 * size, (2, instances)),
            *rng.uniform(0.05 * size, 0.2 * size, (2, instances)),
            rng.uniform(0, 0.3, instances),
            rng.uniform(0, 6, instances),
        ],
        axis=1,
    )
    taken = np.flatnonzero(rng.random(instances) < 0.9)
    taken = np.concatenate([taken, taken[rng.random(len(taken)) < 0.15]])  # found twice
    error = rng.exponential(0.06, (len(taken), 1))
    moved = shapes[taken]
    moved[:, :2] += error * moved[:, 2:4] * rng.normal(0, 1, (len(taken), 2))
    moved[:, 2:4] *= np.exp(error * rng.normal(0, 1, (len(taken), 2)))
    moved[:, 5] += error[:, 0] * rng.normal(0, 5, len(taken))
    found_labels = np.where(rng.random(len(taken)) < 0.9, labels[taken], rng.integers(1, classes + 1, len(taken)))
    scores = np.clip(0.9 - 2 * error[:, 0] + rng.normal(0, 0.15, len(taken)), 0.05, 1).astype(np.float32)
    masks = torch.from_numpy(np.stack([draw(size, shape) for shape in shapes]))
    found = torch.from_numpy(np.stack([draw(size, shape) for shape in moved]))
    return Image(
        torch.from_numpy(labels),
        masks,
        Prediction(
            Detections(torch.zeros(len(scores), 4), torch.from_numpy(found_labels), torch.from_numpy(scores)),
            found,
            torch.zeros(found.shape[1:], dtype=torch.int64),
        ),
    )


def batches(args: argparse.Namespace, images: int, batch: int = BATCH) -> Iterator[Mapping[str, Image]]:
    """All images by their ids, a batch at a time."""
    for start in range(0, images, batch):
        seeds = range(start, min(start + batch, images))
        yield {f"{seed:06}": make_image(seed, args.size, args.instances, args.classes) for seed in seeds}


def ours(evaluator: Evaluator = "built-in") -> Side:
    """This library's metric with one of its evaluators."""
    metric = InstanceAP(evaluator)

    def update(images: Mapping[str, Image]) -> None:
        for image_id, image in images.items():
            size = (image.masks.shape[1], image.masks.shape[2])
            known = torch.ones(len(image.labels), dtype=torch.bool)
            semantic = torch.zeros(1, 1, dtype=torch.uint8).expand(size)  # its pixels are read by another metric
            truth = GroundTruth(semantic, tuple(encode_mask(mask) for mask in image.masks.numpy()))
            target = Target(torch.zeros(len(known), 4), image.labels, known, ~known, truth=truth)
            metric.update([image_id], [image.found], [target], size)

    def compute() -> Mapping[str, float]:
        figures = metric.compute()
        return {name: figures[f"coco_{name}"] for name in FIGURES}

    return Side(update, compute)


def theirs(evaluator: str) -> Side:
    """Torchmetrics' metric with one of its evaluators."""
    metric = MeanAveragePrecision(
        iou_type="segm",
        iou_thresholds=IOU_THRESHOLDS,
        rec_thresholds=RECALL_THRESHOLDS,
        backend=evaluator,
        compute_with_cache=False,
    )

    def update(images: Mapping[str, Image]) -> None:
        found = [image.found for image in images.values()]
        metric.update(
            [{"masks": p.masks, "scores": p.detections.scores, "labels": p.detections.labels} for p in found],
            [{"masks": image.masks, "labels": image.labels} for image in images.values()],
        )

    def compute() -> Mapping[str, float]:
        figures = metric.compute()
        return {name: float(figures[theirs]) for name, theirs in FIGURES.items()}

    return Side(update, compute)


def sides() -> dict[str, Callable[[], Side]]:
    """Every side that can run here, by name."""
    made = {
        "ours": ours,
        "torchmetrics": partial(theirs, "pycocotools"),
        "ours, pycocotools": partial(ours, "pycocotools"),
    }
    if find_spec("faster_coco_eval") is not None:
        made["torchmetrics, faster_coco_eval"] = partial(theirs, "faster_coco_eval")
        made["ours, faster_coco_eval"] = partial(ours, "faster_coco_eval")
    return made


class Stopwatch:
    """Seconds by the wall and of the processor, summed over what ran inside."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter() - self._started[0]
        self.processor += time.process_time() - self._started[1]


def measure_times(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Median seconds of update and compute of each side, and its figures."""
    names = list(sides())
    watches: dict[str, list[tuple[Stopwatch, Stopwatch]]] = {name: [] for name in names}
    figures: dict[str, Mapping[str, float]] = {}
    for repetition in range(args.repetitions):
        running = {name: make() for name, make in sides().items()}
        for name in names:
            watches[name].append((Stopwatch(), Stopwatch()))
        for number, images in enumerate(batches(args, args.images)):
            for name in take_turns(names, number):
                with watches[name][-1][0]:
                    running[name].update(images)
        for name in take_turns(names, repetition):
            with watches[name][-1][1]:
                figures[name] = running[name].compute()
        del running
    return {name: summarize(watches[name]) | dict(figures[name]) for name in names}


def take_turns(names: Sequence[str], turn: int) -> list[str]:
    """All names, another one first each time."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def summarize(watches: Sequence[tuple[Stopwatch, Stopwatch]]) -> dict[str, float]:
    """Medians over the repetitions."""
    parts = dict(zip(("update", "compute"), zip(*watches, strict=True), strict=True))
    wall = {f"{name}_wall_s": statistics.median(watch.wall for watch in part) for name, part in parts.items()}
    return wall | {f"{name}_s": statistics.median(watch.processor for watch in part) for name, part in parts.items()}


def resident(field: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at most so far (Linux)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def measure_memory(name: str, args: argparse.Namespace) -> dict[str, float]:
    """What one side needs beyond a process that is warm; to be called in a process of its own."""
    warm = sides()[name]()
    for images in batches(args, BATCH):
        warm.update(images)
    warm.compute()
    del warm, images
    before = settle()
    side = sides()[name]()
    for images in batches(args, args.images, batch=1):
        side.update(images)
    del images
    update_peak = resident("VmHWM") - before
    kept = settle() - before
    side.compute()
    return {"update_peak_mb": update_peak, "kept_mb": kept, "compute_peak_mb": resident("VmHWM") - before}


def settle() -> float:
    """Give free memory back to the system (glibc), let the peak start anew, and say what is resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def memory_elsewhere(name: str) -> dict[str, float]:
    """`measure_memory` in a new process with the same options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def as_markdown(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One row for each side; the ratios are those of the whole time and of the higher peak."""
    base = rows["ours"]
    lines = ["| | update s | compute s | time / ours | kept MB | peak MB | peak / ours | AP | AP50 | AP75 |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for name, row in rows.items():
        ratios = (_time(row) / _time(base), _peak(row) / _peak(base))
        cells = [f"{row['update_s']:.2f}", f"{row['compute_s']:.2f}", f"{ratios[0]:.2f}", f"{row['kept_mb']:.1f}"]
        cells += [f"{_peak(row):.1f}", f"{ratios[1]:.2f}", *(f"{row[figure]:.6f}" for figure in FIGURES)]
        lines += [f"| {' | '.join([name, *cells])} |"]
    return "\n".join(lines) + "\n"


def _time(row: Mapping[str, float]) -> float:
    return row["update_s"] + row["compute_s"]


def _peak(row: Mapping[str, float]) -> float:
    return max(row["update_peak_mb"], row["compute_peak_mb"])


def main() -> None:
    """Print one JSON line for each side; write evaluation.json and evaluation.md where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--instances", type=int, default=10, help="objects of an image")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of is not None:
        print(json.dumps(measure_memory(args.memory_of, args)))
        return
    rows = {name: row | memory_elsewhere(name) for name, row in measure_times(args).items()}
    for name, row in rows.items():
        print(json.dumps({"side": name} | {key: round(value, 7) for key, value in row.items()}), flush=True)
    difference = max(abs(row[figure] - rows["ours"][figure]) for row in rows.values() for figure in FIGURES)
    print(json.dumps({"largest_ap_difference": difference}))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        setting = {key: getattr(args, key) for key in ("images", "instances", "size", "classes", "repetitions")}
        content = {"setting": setting, "sides": rows, "largest_ap_difference": difference}
        (args.out / "evaluation.json").write_text(json.dumps(content, indent=1) + "\n")
        (args.out / "evaluation.md").write_text(as_markdown(rows))


if __name__ == "__main__":
    main()
