"""Instance inference from pixels to masks, against torchvision's Mask R-CNNs: `python experiments/benchmarks/inference.py`.

The same images of the same size for all, the same boxes get masks: --detections squares of each side of --sides at random
places (rivals.py says how detection runs beside them). An answer is a bool mask of the image's size for each box, and in
our case the class map too. `ours` is as `load` makes it ready; --variants are the ways that it does not take. All take
turns in one process; `times ours` is how many times as long as ours a network takes. On a GPU `--precision bf16`,
`--variants compiled` and `--compile` are of use.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import autocast, choose_device, costs, scatter_boxes, setting, time_interleaved, write_results
from rivals import DETECTOR, NUM_CLASSES, RIVALS, OurInference, RivalInference, Shape, to_device
from torch import nn

from dasnet_lightning.detectors.fold_batchnorm import fold_norms
from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.nn.heads import PositionSensitiveHead

OURS = "ours"
VARIANTS = ("as trained", "contiguous", "compiled")  # norms not folded; no channels_last; torch.compile
Side = OurInference | RivalInference


def build_ours(variant: str, args: argparse.Namespace, device: torch.device) -> OurInference:
    """Our network as `load` makes it ready, but for what the variant says."""
    torch.manual_seed(0)
    model = build_dasnet(NUM_CLASSES, args.detector, decoder=args.decoder, head=PositionSensitiveHead).to(device)
    assert isinstance(model.detector, nn.Module)
    if variant != "as trained":
        fold_norms(model.detector)
    if variant == "contiguous":
        model.to(memory_format=torch.contiguous_format)
    if variant == "compiled":  # the encoder has one shape; what the decoder gets is as large as the boxes are
        backbone = model.detector.detector.backbone
        backbone.forward = torch.compile(backbone.forward)
        model.decoder.decode_fine = torch.compile(model.decoder.decode_fine, dynamic=True)
    return OurInference(model, args.candidates, args.detections)


def build(args: argparse.Namespace, device: torch.device) -> dict[str, Side]:
    """Our network, its variants, and the rivals, by name."""
    sides: dict[str, Side] = {OURS: build_ours("", args, device)}
    for variant in args.variants:
        sides[f"{OURS}, {variant}"] = build_ours(variant, args, device)
    for name in args.rivals:
        network = RIVALS[name](Shape(args.size, args.detections), 0).to(device)
        if args.compile:
            network.backbone.forward = torch.compile(network.backbone.forward)
        sides[name] = RivalInference(network, args.candidates)
    return sides


def measure(
    sides: dict[str, Side], side: float, args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """A line for each network, with boxes of one side."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(args.batch, 3, args.size, args.size, generator=generator).to(device)
    placed = [to_device(scatter_boxes(args.detections, side, args.size), device)] * args.batch
    runs: dict[str, Callable[[], Any]] = {name: partial(each, images) for name, each in sides.items()}
    if args.precision == "bf16":
        runs = {name: partial(autocast, run, device) for name, run in runs.items()}
    counted = {}
    for name, each in sides.items():
        each.prepare(images, placed)
        *counted[name], answers = costs(runs[name], device)
        answered = [len(a) if isinstance(a, torch.Tensor) else len(a.masks) for a in answers]
        assert answered == [args.detections] * args.batch, answered
    spent = time_interleaved(runs, device, args.repetitions, warmup=0)  # counting has prepared the kernels
    lines = []
    for name, each in sides.items():
        lines.append(
            {
                "network": name,
                "side": side,
                "input": each.input,
                "proposals": "" if isinstance(each, OurInference) else str(each.proposals),
                "gmac": round(counted[name][0] / args.batch, 1),
                "peak_mb": round(counted[name][1] / 1e6, 1),
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
    parser.add_argument("--variants", nargs="*", default=[], choices=VARIANTS, metavar="NAME", help="of ours")
    parser.add_argument("--compile", action="store_true", help="the rivals' trunks (of ours: --variants compiled)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device()
    sides = build(args, device)
    about = setting(device, **{k: v for k, v in vars(args).items() if k not in ("out", "threads", "rivals")})
    lines = []
    for side in args.sides:
        for line in measure(sides, side, args, device):
            lines.append(line)
            print(json.dumps(line), flush=True)
    write_results(args.out, "inference", about, lines)


if __name__ == "__main__":
    main()
