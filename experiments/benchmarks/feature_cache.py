"""What a cache of the frozen detector's features saves: `python experiments/benchmarks/feature_cache.py --out FOLDER`.

Whole validations (ground-truth and detected boxes, mIoU and AP) run with and without the cache, batch by batch
in turn in one process; the figures of both must agree to the last digit. Images are read beforehand. Times are medians
over batches and repetitions, in milliseconds an image; without a GPU they are the process's own time on its processors,
which other work on the machine does not stretch:

* features: the detector's encoder; first: the same and writing the files; cached: reading them, the hash of the pixels
  and the check of the files included, from the system's file cache;
* detect: boxes from the features, which is computed either way;
* validation: a whole step. peak_mb: what the resident memory of the process grows at most above that of the images and
  the network, while features are computed or read (Linux; else empty).

Networks are detectors by name, with random weights (`detect` then sorts candidates in numbers that no trained one finds,
and validation decodes the ground-truth boxes alone), or checkpoints of stage two. Without --data the pictures are made up.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import choose_device, setting, write_results

from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.feature_cache.cache import FeatureCache
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.tasks.config import NetworkConfig
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.tasks.semantic import SemanticTask
from dasnet_lightning.types import Batch

COLUMNS = (
    *("network", "images", "mb_an_image", "features_ms", "first_ms", "cached_ms", "features_ratio", "detect_ms"),
    *(
        "validation_ms",
        "validation_cached_ms",
        "validation_ratio",
        "features_peak_mb",
        "cached_peak_mb",
        "same_figures",
    ),
)


def build_task(network: str, dataset: DataSet, device: torch.device) -> SegmentationTask:
    """A detector by name with a decoder, both untrained, or the task of a checkpoint; it logs nowhere."""
    if network.endswith(".ckpt"):
        kind = {"semantic": SemanticTask, "instance": InstanceTask}[
            read_checkpoint(network)["hyper_parameters"]["task"]
        ]
        task = kind.load_from_checkpoint(network, map_location="cpu", weights_only=True)
    else:
        torch.manual_seed(0)
        names, none = dataset.train.class_names, SemanticOptions(score_threshold=1.0)
        task = SemanticTask(len(names), names, network=NetworkConfig(network), inference=none)
    task.log_dict = lambda *values, **options: None  # type: ignore[method-assign]
    return task.eval().to(device)


def wait(device: torch.device) -> float:
    """The time, when all that was asked of the device is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def time_in_turn(runs: dict[str, Callable[[Batch], Any]], batches: Sequence[Batch]) -> dict[str, list[float]]:
    """Milliseconds an image of each run on each batch; all runs see a batch before the next one comes."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for batch in batches:
        for name, run in runs.items():
            started = wait(batch.images.device)
            run(batch)
            times[name].append(1e3 * (wait(batch.images.device) - started) / len(batch))
    return times


def peak_megabytes(run: Callable[[Batch], Any], batches: Sequence[Batch]) -> float | None:
    """How far the resident memory grows at most; None where the system does not say."""
    try:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    except OSError:
        return None
    for batch in batches:
        run(batch)
    return round((_resident("VmHWM") - before) / 1e3, 1)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def read_batches(dataset: DataSet, image_size: tuple[int, int], args: argparse.Namespace) -> list[Batch]:
    """The first validation images, as a validation sees them."""
    data = MixedSupervisionDataModule("", image_size=image_size, batch_size=args.batch_size)
    data.use(dataset)
    return list(itertools.islice(data.val_dataloader(), -(-args.images // args.batch_size)))


@torch.inference_mode()
def measure(
    task: SegmentationTask, network: str, batches: Sequence[Batch], folder: Path, repetitions: int
) -> dict[str, Any]:
    """The line of one network."""
    detector, cache = task.model.detector, FeatureCache(folder)
    for batch in batches[:1]:
        task.validation_step(batch, 0)  # prepares the kernels
        task.on_validation_epoch_end()
    peaks = {"features": peak_megabytes(lambda batch: detector.features(batch.images), batches)}
    first = time_in_turn({"first": lambda batch: cache.features(detector, batch.images)}, batches)
    peaks["cached"] = peak_megabytes(lambda batch: cache.features(detector, batch.images), batches)
    number = sum(map(len, batches))
    kept = sum(path.stat().st_size for path in folder.iterdir())

    def validate(with_cache: bool) -> Callable[[Batch], None]:
        def run(batch: Batch) -> None:
            task.feature_cache = cache if with_cache else None
            task.validation_step(batch, 0)

        return run

    parts = {
        "features": lambda batch: detector.features(batch.images),
        "cached": lambda batch: cache.features(detector, batch.images),
        "detect": lambda batch: detector.detect(cache.features(detector, batch.images)),
    }
    times = {name: [*values] for name, values in first.items()}
    for _ in range(repetitions):
        for name, values in time_in_turn(parts, batches).items():
            times.setdefault(name, []).extend(values)
    steps = {"validation": validate(False), "validation_cached": validate(True)}
    found = {}
    for name, run in steps.items():
        for batch in batches:
            run(batch)
        task.on_validation_epoch_end()
        found[name] = task.metrics
    for _ in range(repetitions):
        for name, values in time_in_turn(steps, batches).items():
            times.setdefault(name, []).extend(values)
        task.on_validation_epoch_end()
    middle = {name: statistics.median(values) for name, values in times.items()}
    middle["detect"] -= middle["cached"]
    line = {
        "network": task.hparams["network"]["detector"] + (", trained" if network.endswith(".ckpt") else ""),
        "images": number,
        "mb_an_image": round(kept / 1e6 / number, 2),
        **{f"{name}_ms": round(value, 2) for name, value in middle.items()},
        "features_ratio": round(middle["features"] / middle["cached"], 1),
        "validation_ratio": round(middle["validation"] / middle["validation_cached"], 2),
        **{f"{name}_peak_mb": "" if value is None else value for name, value in peaks.items()},
        "same_figures": repr(found["validation"]) == repr(found["validation_cached"]),  # nan is nan
    }
    return {name: line[name] for name in COLUMNS}


def main() -> None:
    """Print one JSON line for each network; write feature_cache.json and feature_cache.md where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["ssd320_mobilenet_v2", "ssd320_vgg16"], metavar="NAME")
    parser.add_argument("--data", type=Path, help="a data set with masks (default: made-up pictures)")
    parser.add_argument("--size", type=int, default=320, help="side of the made-up pictures")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = choose_device()
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        root = args.data or write_synthetic(Path(scratch) / "data", num_train=2, num_val=args.images, size=args.size)
        dataset = open_dataset(root)
        for number, network in enumerate(args.networks):
            task = build_task(network, dataset, device)
            batches = [batch.to(device) for batch in read_batches(dataset, task.model.detector.image_size, args)]
            lines.append(measure(task, network, batches, Path(scratch) / f"features{number}", args.repetitions))
            print(json.dumps(lines[-1]), flush=True)
    write_results(
        args.out,
        "feature_cache",
        setting(device, clock="perf_counter" if device.type == "cuda" else "process_time"),
        lines,
    )


if __name__ == "__main__":
    main()
