"""Training steps (forward, backward, optimizer) against torchvision's Mask R-CNNs: `python experiments/benchmarks/training.py`.

The same images, boxes and masks for all. A rival learns everything in one step; with `--trunks` it is measured with all
of its trunk learning (6), torchvision's last 3 stages (its default with pretrained weights), or none of it (0). Ours is
trained in two stages: the detector from boxes, then the decoder from masks with the detector frozen; `both stages` is an
image that passes through each of them once, and what `times ours` compares with. `frozen_blocks` are those of the
detector's own trunk that do not learn. All take turns in one process.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import autocast, choose_device, costs, scatter_boxes, setting, time_interleaved, write_results
from rivals import DEFAULT_TRUNK, DETECTOR, NUM_CLASSES, RIVALS, Shape
from torch import Tensor, nn

from dasnet_lightning.functional.losses import graph_zero
from dasnet_lightning.tasks.config import NetworkConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.optimization import OptimizerConfig, build_optimizers
from dasnet_lightning.types import Batch, Target

STAGE_ONE, STAGE_TWO, BOTH = "ours, stage one", "ours, stage two", "ours, both stages"
CONFIG = OptimizerConfig(lr=1e-5, schedule="constant")


def make_batch(args: argparse.Namespace, device: torch.device) -> Batch:
    """Noise with square objects of one side, an ellipse in each box."""
    size, classes = args.size, torch.Generator().manual_seed(0)
    place = torch.arange(size) + 0.5
    targets = []
    for image in range(args.batch):
        boxes = scatter_boxes((image + 1) * args.objects, args.side, size).boxes[: args.objects]
        centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        across, down = ((place - centre[:, axis, None]) / half[:, axis, None] for axis in (0, 1))
        targets.append(
            Target(
                boxes=boxes,
                labels=torch.randint(1, NUM_CLASSES, (args.objects,), generator=classes),
                has_mask=torch.ones(args.objects, dtype=torch.bool),
                ignore=torch.zeros(args.objects, dtype=torch.bool),
                masks=down.square()[:, :, None] + across.square()[:, None, :] < 1,
            )
        )
    images = torch.rand(args.batch, 3, size, size, generator=classes)
    names = tuple(f"image{number}" for number in range(args.batch))
    return Batch(names, images, tuple(targets), tuple(range(args.batch))).to(device)


def step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One training step."""
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def stage_one(args: argparse.Namespace, batch: Batch) -> Callable[[], Any]:
    """A step of DetectionTask."""
    options = {"frozen_blocks": args.frozen_blocks, "freeze_norm": True} if args.detector == DETECTOR else {}
    task = DetectionTask(NUM_CLASSES, detector=args.detector, detector_options=options).to(batch.images.device).train()

    def loss() -> Tensor:
        return torch.stack(list(task.losses(batch).values())).sum()

    return partial(step, loss, build_optimizers(CONFIG, task, 0)["optimizer"])


def stage_two(args: argparse.Namespace, batch: Batch) -> Callable[[], Any]:
    """A step of InstanceTask."""
    task = (
        InstanceTask(NUM_CLASSES, network=NetworkConfig(args.detector, decoder=args.decoder))
        .to(batch.images.device)
        .train()
    )

    if args.compile:
        backbone = task.model.detector.detector.backbone
        backbone.forward = torch.compile(backbone.forward)
        task.model.decoder.forward = torch.compile(task.model.decoder.forward, dynamic=True)

    def loss() -> Tensor:
        losses, _ = task.losses(batch)
        return torch.stack([graph_zero(task.parameters()), *losses.values()]).sum()

    return partial(step, loss, build_optimizers(CONFIG, task.model, 0)["optimizer"])


def rival(network: nn.Module, batch: Batch) -> Callable[[], Any]:
    """A step of a rival."""
    network.to(batch.images.device).train()
    images = list(batch.images)
    targets = [
        {"boxes": target.boxes, "labels": target.labels, "masks": target.masks.to(torch.uint8)}
        for target in batch.targets
        if target.masks is not None
    ]
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=CONFIG.lr, momentum=CONFIG.momentum)
    return partial(step, lambda: torch.stack(list(network(images, targets).values())).sum(), optimizer)


def build(args: argparse.Namespace, batch: Batch) -> dict[str, Callable[[], Any]]:
    """A step of each network."""
    runs = {STAGE_ONE: stage_one(args, batch), STAGE_TWO: stage_two(args, batch)}
    for name in args.rivals:
        for trunk in args.trunks:
            network = RIVALS[name](Shape(args.size, rois=args.rois), trunk)
            if args.compile:
                network.backbone.forward = torch.compile(network.backbone.forward)
            runs[f"{name}, trunk {trunk}"] = rival(network, batch)
    return runs


def measure(runs: dict[str, Callable[[], Any]], args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """A line for each network; ours has a third one, the sum of its stages."""
    counted = {name: costs(run, device)[:2] for name, run in runs.items()}
    counted[BOTH] = (
        counted[STAGE_ONE][0] + counted[STAGE_TWO][0],
        max(counted[STAGE_ONE][1], counted[STAGE_TWO][1]),
    )
    spent = time_interleaved(runs, device, args.repetitions, warmup=0)  # counting has prepared the kernels
    spent[BOTH] = spent[STAGE_ONE] + spent[STAGE_TWO]
    order = [STAGE_ONE, STAGE_TWO, BOTH, *(name for name in runs if name not in (STAGE_ONE, STAGE_TWO))]
    return [
        {
            "step": name,
            "gmac per image": round(counted[name][0] / args.batch, 1),
            "peak_mb": round(counted[name][1] / 1e6, 1),
            "ms per image": round(1e3 * spent[name] / args.batch, 1),
            "times ours": round(spent[name] / spent[BOTH], 2),
        }
        for name in order
    ]


def main() -> None:
    """Print a JSON line for each step; write training.json and training.md where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default=DETECTOR)
    parser.add_argument("--decoder", default="light")
    parser.add_argument("--frozen-blocks", type=int, default=0)
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS), metavar="NAME")
    parser.add_argument("--trunks", type=int, nargs="+", default=[DEFAULT_TRUNK])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--objects", type=int, default=5, help="of an image")
    parser.add_argument("--side", type=float, default=0.3, help="of the objects, in images")
    parser.add_argument("--rois", type=int, default=512, help="of an image; a quarter of them at most learn masks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="the trunks, and the decoder of ours")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = choose_device()
    runs = build(args, make_batch(args, device))
    if args.precision == "bf16":
        runs = {name: partial(autocast, run, device) for name, run in runs.items()}
    lines = measure(runs, args, device)
    for line in lines:
        print(json.dumps(line), flush=True)
    about = setting(device, **{k: v for k, v in vars(args).items() if k not in ("out", "threads", "rivals")})
    write_results(args.out, "training", about, lines)


if __name__ == "__main__":
    main()
