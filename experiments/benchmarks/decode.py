"""What a decode costs by number and side of the boxes: `python experiments/benchmarks/decode.py --out FOLDER`.

Three ways to the same masks, in instance mode (one region a box, 98 position-sensitive maps):

* authors: the whole network, encoder included, once for each box, as the authors of DASNet ran theirs;
* plain: the encoder once, then decoder and score layer on whole maps for each box;
* ours: the encoder once, windows around the boxes (models.local), only the channels that are read (lazy_scoring).

Operations are multiply-adds of convolutions and matrix products, encoder and box heads included, counted while the real
code runs with the arithmetic left out. Peak bytes are those of all tensors of the decode that are alive at once, masks
included, with at most 16 whole maps as in inference. Times are medians of interleaved repetitions in one process, from
the encoder's features on; --boxes-timed bounds what is run for real. On a GPU bf16 and a compiled decoder are timed too.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import LiveBytes, autocast, choose_device, gmac, scatter_boxes, setting, time_interleaved, write_results
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from dasnet_lightning.functional.position_sensitive import pixel_grid, read_boxes
from dasnet_lightning.functional.regions import regions_by_instance
from dasnet_lightning.models.dasnet import DASNet, build_dasnet
from dasnet_lightning.models.instance import InstanceOptions, segment_instances
from dasnet_lightning.nn.heads import PositionSensitiveHead
from dasnet_lightning.types import Detections, Pyramid

SIDES = (0.2, 0.4, 0.6)
NUMBERS = (1, 5, 20, 100)
ARITHMETIC = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.max_pool2d_with_indices.default,
}
OPTIONS = InstanceOptions(lowest_score=0.0)


class Unworked(TorchDispatchMode):
    """Leaves the arithmetic of convolutions and products out: their results have the right shape and no meaning."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in ARITHMETIC:
            return func(*args, **(kwargs or {}))
        shapes = func(*tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args), **(kwargs or {}))
        return tree_map_only(Tensor, lambda tensor: torch.zeros_like(tensor, device=args[0].device), shapes)


def run_plain(model: DASNet, pyramid: Pyramid, found: Detections) -> list[Tensor]:
    """Whole maps for each box, 16 at once, and the reading of each box."""
    regions, scores = regions_by_instance([found]), []
    for start in range(0, len(regions), OPTIONS.regions_at_once):
        some = regions.select(start, start + OPTIONS.regions_at_once)
        maps = model.score(pyramid, some)
        for number, box in enumerate(some.boxes):
            row = torch.tensor([number], device=box.device)
            grid = pixel_grid(box[None], pyramid.size)
            scores.append(read_boxes(maps, box[None], row, grid, pyramid.size, model.head.cells))
        del maps
    return scores


def run_ours(model: DASNet, pyramid: Pyramid, found: Detections) -> Any:
    """What `segment` and the evaluation run."""
    return segment_instances(model, pyramid, [found], [pyramid.size], OPTIONS)


def count(run: Callable[[], Any]) -> tuple[float, int]:
    """GMAC and peak bytes of a call."""
    with Unworked(), LiveBytes() as bytes_:
        cost, _ = gmac(run)
    return cost, bytes_.peak


def measure(model: DASNet, images: Tensor, number: int, side: float, args: argparse.Namespace) -> dict[str, Any]:
    """One line of the table."""
    device, size = images.device, images.shape[-1]
    found = scatter_boxes(number, side, size)
    found = Detections(found.boxes.to(device), found.labels.to(device), found.scores.to(device))
    few = min(number, OPTIONS.regions_at_once)
    encoder = args.encoder_gmac
    pyramid = args.pyramid
    one = Detections(found.boxes[:few], found.labels[:few], found.scores[:few])
    plain_gmac, plain_bytes = count(partial(run_plain, model, pyramid, one))
    ours_gmac, ours_bytes = count(partial(run_ours, model, pyramid, found))
    plain_gmac *= number / few  # each box costs the same
    line: dict[str, Any] = {
        "boxes": number,
        "side": side,
        "authors_gmac": round(number * encoder + plain_gmac, 1),
        "plain_gmac": round(encoder + plain_gmac, 1),
        "ours_gmac": round(encoder + ours_gmac, 1),
        "ratio": round((encoder + plain_gmac) / (encoder + ours_gmac), 2),
        "plain_decode_mb": round(plain_bytes / 1e6, 1),
        "ours_decode_mb": round(ours_bytes / 1e6, 1),
        "memory_share": round(ours_bytes / plain_bytes, 3),
    }
    if number <= args.boxes_timed:
        line |= time_line(model, images, pyramid, found, args.repetitions)
    return line


def time_line(model: DASNet, images: Tensor, pyramid: Pyramid, found: Detections, repetitions: int) -> dict[str, float]:
    """Seconds of the decodes, and their ratio; on a GPU with bf16 and with a compiled decoder too."""
    runs = {"plain": partial(run_plain, model, pyramid, found), "ours": partial(run_ours, model, pyramid, found)}
    if images.device.type == "cuda":
        for name, run in list(runs.items()):
            runs[f"{name}_bf16"] = partial(autocast, run, images.device)
        whole, compiled = model.decoder.forward, torch.compile(model.decoder.forward, dynamic=True)
        runs["plain_compiled"] = partial(_with_forward, model, compiled, whole, runs["plain"])
    spent = time_interleaved(runs, images.device, repetitions)
    times = {f"{name}_s": round(seconds, 4) for name, seconds in spent.items()}
    return times | {"time_ratio": round(spent["plain"] / spent["ours"], 2)}


def _with_forward(model: DASNet, forward: Any, before: Any, run: Callable[[], Any]) -> Any:
    model.decoder.forward = forward  # type: ignore[method-assign]
    try:
        return run()
    finally:
        model.decoder.forward = before  # type: ignore[method-assign]


@torch.inference_mode()
def main() -> None:
    """Print one JSON line for each number and side; write decode.json and decode.md where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="ssd320_vgg16")
    parser.add_argument("--decoder", default="paper")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS)
    parser.add_argument("--sides", type=float, nargs="+", default=SIDES)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--boxes-timed", type=int, default=20, help="most boxes of a line that is timed; 0: none")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = choose_device()
    torch.manual_seed(0)
    model = build_dasnet(21, args.detector, decoder=args.decoder, head=PositionSensitiveHead).eval().to(device)
    images = torch.rand(1, 3, args.size, args.size, device=device)
    args.encoder_gmac, _ = count(lambda: model.detector.detector.predict(model.detector.features(images)))
    with nullcontext() if args.boxes_timed else Unworked():
        args.pyramid = model.detector.features(images)
    lines = []
    for side in args.sides:
        for number in args.numbers:
            lines.append(measure(model, images, number, side, args))
            print(json.dumps(lines[-1]), flush=True)
    about = {"detector": args.detector, "decoder": args.decoder, "encoder_gmac": round(args.encoder_gmac, 1)}
    write_results(args.out, "decode", setting(device, **about), lines)


if __name__ == "__main__":
    main()
