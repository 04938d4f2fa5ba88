"""Instance inference from pixels to masks, against torchvision's Mask R-CNNs: `python experiments/benchmarks/inference.py`.

The same images of the same size for all, the same boxes get masks: --detections squares of each side of --sides at random
places (rivals.py says how detection runs beside them). An answer is a bool mask of the image's size for each box, and in
our case the class map too. All take turns in one process; `times ours` is how many times as long as ours a rival takes.
On a GPU `--precision bf16` and `--compile` (encoder and decoder of ours, the trunk of the others) are of use.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import autocast, choose_device, gmac, peak_bytes, scatter_boxes, setting, time_interleaved, write_results
from rivals import DETECTOR, RIVALS, OurInference, RivalInference, Shape, to_device

from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.nn.heads import PositionSensitiveHead

OURS = "ours"
Side = OurInference | RivalInference


def build(names: list[str], shape: Shape, args: argparse.Namespace, device: torch.device) -> dict[str, Side]:
    """Our network, and the rivals by name."""
    model = build_dasnet(shape.num_classes, args.detector, decoder=args.decoder, head=PositionSensitiveHead).to(device)
    sides: dict[str, Side] = {OURS: OurInference(model, args.candidates, shape.detections)}
    for name in names:
        sides[name] = RivalInference(RIVALS[name](shape, 0).to(device), args.candidates)
    if args.compile:
        compile_parts(sides)
    return sides


def compile_parts(sides: dict[str, Side]) -> None:
    """The convolutional parts whose shapes stay; what our decoder gets is as large as the boxes are."""
    for side in sides.values():
        if isinstance(side, OurInference):
            ssd = side.model.detector.detector
            ssd.backbone.forward = torch.compile(ssd.backbone.forward)
            side.model.decoder.decode_fine = torch.compile(side.model.decoder.decode_fine, dynamic=True)
        else:
            side.network.backbone.forward = torch.compile(side.network.backbone.forward)


def measure(
    sides: dict[str, Side], side: float, args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """A line for each network, with boxes of one side."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(args.batch, 3, args.size, args.size, generator=generator).to(device)
    placed = [to_device(scatter_boxes(args.detections, side, args.size), device)] * args.batch
    for each in sides.values():
        each.prepare(images, placed)
        answered = [len(a) if isinstance(a, torch.Tensor) else len(a.masks) for a in each(images)]
        assert answered == [args.detections] * args.batch, answered
    runs: dict[str, Callable[[], Any]] = {name: partial(each, images) for name, each in sides.items()}
    if args.precision == "bf16":
        runs = {name: partial(autocast, run, device) for name, run in runs.items()}
    spent = time_interleaved(runs, device, args.repetitions)
    lines = []
    for name, each in sides.items():
        counts = {} if args.compile else {"gmac": round(gmac(runs[name])[0] / args.batch, 1)}
        lines.append(
            {
                "network": f"ours ({args.detector}, {args.decoder})" if name == OURS else name,
                "side": side,
                "input": each.input,
                "proposals": "" if isinstance(each, OurInference) else str(each.proposals),
                **counts,
                "peak_mb": round(peak_bytes(runs[name], device) / 1e6, 1),
                "ms": round(1e3 * spent[name] / args.batch, 1),
                "times ours": round(spent[name] / spent[OURS], 2),
            }
        )
    return lines


@torch.inference_mode()
def main() -> None:
    """Print a JSON line for each network and side; write inference.json and inference.md where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default=DETECTOR)
    parser.add_argument("--decoder", default="light")
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS), metavar="NAME")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--detections", type=int, default=10)
    parser.add_argument("--sides", type=float, nargs="+", default=[0.2, 0.4, 0.6], help="of the boxes, in images")
    parser.add_argument("--candidates", type=int, default=100, help="boxes of an image that enter the NMS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, shape = choose_device(), Shape(args.size, args.detections)
    sides = build(args.rivals, shape, args, device)
    about = setting(device, **{k: v for k, v in vars(args).items() if k not in ("out", "threads", "rivals")})
    lines = []
    for side in args.sides:
        for line in measure(sides, side, args, device):
            lines.append(line)
            print(json.dumps(line), flush=True)
    write_results(args.out, "inference", about, lines)


if __name__ == "__main__":
    main()
