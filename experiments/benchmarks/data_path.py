"""Images a second on one core, from files to batches: `python experiments/benchmarks/data_path.py --out FOLDER`.

Ours, with the augmentation "ssd" or "segment", without and with masks, against torchvision's v2 transforms doing the work of
"ssd" with masks on the same files: decode, photometric distortion, expand, IoU crop, flip, resize, with boxes and masks as
tv_tensors. What differs: torchvision distorts, expands and crops at full size, draws its own crops, keeps no void map, and
checks nothing about the files. Its batches are made by our collate.

All ways run in one process on one thread, in turns, over the same images. A line gives the median over the turns of the
processor's seconds an image, as images a second; the ratio is to torchvision's. The parts are timed in a second run, ours
with masks and "ssd". At the end stands what a batch costs the process that trains. Without a VOC folder at --root,
photographs of its size are made up.
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
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from dasnet_lightning.data import dataset as dataset_module
from dasnet_lightning.data import loader as collate_module
from dasnet_lightning.data.augmentation import transforms
from dasnet_lightning.data.augmentation.transforms import MEAN_COLOR, build_transform
from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.data.loader import Sample, collate
from dasnet_lightning.data.records import ImageRecord, Source
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.types import Batch, Target

BATCH = 16
Run = Callable[[Sequence[int]], Any]
Table = list[dict[str, Any]]
PARTS: dict[str, list[tuple[Any, str]]] = {
    "decode of the JPEG": [(dataset_module, "read_image")],
    "decode of the masks": [(dataset_module, "load_masks_of")],
    "drawing of the window": [(transforms.SSDWindow, "get_params_dependent_on_data")],
    "window of the image": [(transforms.SSDWindow, "apply")],
    "window of the masks": [(transforms.SSDWindow, "apply_to_mask"), (transforms.SSDWindow, "apply_to_masks")],
    "photometric distortion": [(transforms.PhotometricDistortion, "apply")],
    "target": [(dataset_module, "build_target")],
    "collate": [(collate_module, "collate")],
}
ROOT = Path(__file__).resolve().parents[3] / "shared" / "data" / "voc12_animals"


def make_photographs(root: Path, count: int, seed: int = 0) -> Path:
    """A VOC folder of made-up photographs: 500 x 375 pixels, JPEG at quality 95, one to four objects with masks."""
    for name in ("JPEGImages", "Annotations", "SegmentationObject", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        pixels = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
        indices, objects = np.zeros((375, 500), np.uint8), ""
        for place in range(1, int(rng.integers(1, 5)) + 1):
            # side by side, so that none covers another
            x, y = int(rng.integers(62, 64)) + 125 * (place - 1), int(rng.integers(120, 250))
            half_x, half_y = int(rng.integers(20, 60)), int(rng.integers(30, 110))
            cv2.ellipse(indices, (x, y), (half_x, half_y), 0, 0, 360, place, -1)
            cv2.ellipse(indices, (x, y), (half_x, half_y), 0, 0, 360, 255, 2)
            sides = zip(("xmin", "ymin", "xmax", "ymax"), (x - half_x, y - half_y, x + half_x, y + half_y), strict=True)
            box = "".join(f"<{side}>{value + 1}</{side}>" for side, value in sides)
            objects += f"<object><name>cat</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
        name = f"{number:06d}"
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        picture = Image.fromarray(indices, mode=None).convert("P")
        picture.putdata(indices.ravel().tolist())
        picture.save(root / "SegmentationObject" / f"{name}.png")
        size = "<size><width>500</width><height>375</height><depth>3</depth></size>"
        source = "<source><database>made up, in the classes of VOC2012</database></source>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{source}{size}{objects}</annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("".join(f"{number:06d}\n" for number in range(count)))
    return root


class TorchvisionWay:
    """The work of "ssd" with masks, as a user of torchvision's v2 transforms would write it."""

    def __init__(self, source: Source, size: int) -> None:
        self.source = source
        fill = {tv_tensors.Image: MEAN_COLOR, tv_tensors.Mask: 0}
        self.transform = v2.Compose(
            [
                v2.RandomPhotometricDistort(p=0.5),
                v2.RandomZoomOut(fill=fill, side_range=(1.0, 4.0), p=0.5),
                v2.RandomIoUCrop(),
                v2.RandomHorizontalFlip(0.5),
                v2.Resize((size, size), antialias=True),
                v2.SanitizeBoundingBoxes(labels_getter=lambda inputs: (inputs[1]["labels"], inputs[1]["masks"])),
            ]
        )

    def __call__(self, index: int) -> Sample:
        record = self.source.records[index]
        with Image.open(record.path) as photograph:
            image = v2.functional.pil_to_tensor(photograph.convert("RGB"))
        mask_file = self.source.root / "SegmentationObject" / f"{record.image_id}.png"
        with Image.open(mask_file) as picture:
            indices = torch.from_numpy(np.array(picture))
        places = torch.arange(1, len(record.objects) + 1, dtype=torch.uint8)
        boxes = torch.tensor([item.box for item in record.objects], dtype=torch.float32).reshape(-1, 4)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=record.size),
            "labels": torch.tensor([item.label for item in record.objects]),
            "masks": tv_tensors.Mask((indices == places[:, None, None]).to(torch.uint8)),
        }
        image, target = self.transform(tv_tensors.Image(image), target)
        count = len(target["labels"])
        known, ignored = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        masks = target["masks"].as_subclass(torch.Tensor).bool()
        boxes = target["boxes"].as_subclass(torch.Tensor)
        done = Target(boxes=boxes, labels=target["labels"], has_mask=known, ignore=ignored, masks=masks)
        return Sample(record.image_id, image.as_subclass(torch.Tensor), done, index, record.size)


def build_ways(source: Source, records: Sequence[ImageRecord], size: int) -> dict[str, Run]:
    """Each way takes the places of some images, and makes batches of them."""
    every = frozenset(record.image_id for record in records)
    settings = {
        "boxes, ssd": ("ssd", frozenset[str]()),
        "masks, ssd": ("ssd", every),
        "masks, segment": ("segment", every),
    }
    ways: dict[str, Run] = {}
    for name, (augmentation, mask_ids) in settings.items():
        dataset = SegmentationDataset(source, records, mask_ids, build_transform(augmentation, (size, size)), seed=0)
        ways[name] = _in_batches(lambda index, dataset=dataset: dataset[0, index])  # type: ignore[misc]
    return ways | {"torchvision v2": _in_batches(TorchvisionWay(source, size))}


def _in_batches(load: Callable[[int], Sample]) -> Run:
    def run(indices: Sequence[int]) -> None:
        for start in range(0, len(indices), BATCH):
            collate_module.collate([load(index) for index in indices[start : start + BATCH]])

    return run


def time_in_turns(ways: dict[str, Run], turns: Sequence[Sequence[int]]) -> dict[str, float]:
    """Median processor seconds an image of each way; all ways take each turn's images, the first to go changes."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn, indices in enumerate(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            ways[name](indices)
            spent[name].append((time.process_time() - start) / len(indices))
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def profile_parts(source: Source, records: Sequence[ImageRecord], turns: Sequence[Sequence[int]], size: int) -> Table:
    """Milliseconds an image of each part of the way with masks and "ssd": timers around the functions that do them."""
    spent = dict.fromkeys(PARTS, 0.0)
    kept = {(owner, name): getattr(owner, name) for places in PARTS.values() for owner, name in places}
    try:
        for part, places in PARTS.items():
            for owner, name in places:
                setattr(owner, name, _timed(kept[owner, name], part, spent))
        run = build_ways(source, records, size)["masks, ssd"]
        run(turns[0])
        spent.update(dict.fromkeys(spent, 0.0))
        start = time.process_time()
        for indices in turns:
            run(indices)
        whole = time.process_time() - start
    finally:
        for (owner, name), function in kept.items():
            setattr(owner, name, function)
    count = sum(map(len, turns))
    spent["the rest: albumentations, boxes, survivors"] = whole - sum(spent.values())
    return [
        {"part": part, "ms": round(1000 * seconds / count, 3), "share": round(seconds / whole, 3)}
        for part, seconds in spent.items()
    ]


def _timed(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        result = function(*args, **options)
        spent[part] += time.process_time() - start
        return result

    return run


def measure_transfer(samples: Sequence[Sample], batches: int) -> Table:
    """Processor milliseconds of the training process for a batch that it reads once: made there, or by a worker."""
    ways: dict[str, tuple[int, Callable[[list[Sample]], Any]]] = {
        "made in the process that trains": (0, collate),
        "from a worker, in one block": (1, collate),
        "from a worker, tensor by tensor": (1, _collate_apart),
    }
    lines = []
    for name, (workers, join) in ways.items():
        loader = DataLoader(list(samples) * batches, len(samples), num_workers=workers, collate_fn=join)
        spent, arriving = [], iter(loader)
        for _ in range(batches):
            time.sleep(0.1)  # the worker is ahead
            start = time.process_time()
            batch = next(arriving)
            images, targets = (batch.images, batch.targets) if isinstance(batch, Batch) else batch[1:3]
            images.sum(), [target.masks.sum() for target in targets]
            spent.append(time.process_time() - start)
        lines.append({"batch": name, "ms": round(1000 * statistics.median(spent[1:]), 2)})
    return lines


def _collate_apart(samples: list[Sample]) -> tuple[Any, ...]:
    """A batch as plain values, which torch sends tensor by tensor."""
    batch = collate(samples)
    return batch.image_ids, batch.images, batch.targets, batch.seeds


def as_markdown(lines: Table) -> str:
    """The lines as a table."""
    rows = [list(lines[0]), ["---"] + ["---:"] * (len(lines[0]) - 1), *(map(str, line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def measure(root: Path, args: argparse.Namespace) -> dict[str, Table]:
    """All tables, for the photographs in one VOC folder."""
    source = VOCSource(root, "train")
    records = [record for record in source.records if record.has_masks]
    order = np.random.default_rng(0).permutation(len(records)).tolist()
    turns = [[order[i % len(order)] for i in range(n * args.images, (n + 1) * args.images)] for n in range(args.turns)]
    ways = build_ways(source, records, args.size)
    time_in_turns(ways, [turns[0][:BATCH]])  # to warm up
    seconds = time_in_turns(ways, turns)
    theirs = seconds["torchvision v2"]
    speed = [
        {"way": name, "images/s": round(1 / spent, 1), "ms": round(1000 * spent, 2), "ratio": round(theirs / spent, 2)}
        for name, spent in seconds.items()
    ]
    every = frozenset(record.image_id for record in records)
    dataset = SegmentationDataset(source, records, every, build_transform("ssd", (args.size, args.size)), seed=0)
    return {
        "speed": speed,
        "parts": profile_parts(source, records, turns, args.size),
        "transfer": measure_transfer([dataset[0, index] for index in turns[0][:BATCH]], args.batches),
    }


def main() -> None:
    """Print one JSON line for each line of the tables; write data_path.json and data_path.md where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="a VOC folder with masks")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--images", type=int, default=64, help="images of a turn")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--batches", type=int, default=10, help="batches sent from a worker")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        real = args.root.is_dir()
        tables = measure(args.root if real else make_photographs(Path(folder), args.images), args)
    for table, lines in tables.items():
        for line in lines:
            print(json.dumps({"table": table, **line}), flush=True)
    if args.out is not None:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "opencv": cv2.__version__}
        setting = {"photographs": args.root.name if real else "made up", "size": args.size, "threads": 1, **versions}
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "data_path.json").write_text(json.dumps({"setting": setting, **tables}, indent=1) + "\n")
        (args.out / "data_path.md").write_text("\n".join(map(as_markdown, tables.values())))


if __name__ == "__main__":
    main()
