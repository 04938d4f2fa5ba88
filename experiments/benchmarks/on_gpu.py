"""Everything that a GPU decides, as one JSON document: `experiments/benchmarks/on_gpu.sh > gpu.json`, under ten minutes.

* inference: images to masks, `zoom` against torchvision's light rival, in fp32, bf16 and compiled, by batch and boxes;
* training: a step of each stage and of the rival, in the same precisions;
* data: images a second of the data path of one core, and how many cores feed the stages;
* exactness: box-local decoding against whole maps, and bf16 against fp32;
* compilation: graphs that torch.compile makes as the number of boxes changes;
* processes: gradients and all-reduce over NCCL with the GPUs there are (gloo with two processes on a CPU).

A part that fails holds its error, and the exit code is then 1. What does not fit into --minutes is listed under `skipped`.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import data_path
import torch
from harness import autocast, peak_bytes, scatter_boxes, setting, time_interleaved
from rivals import NUM_CLASSES, RIVALS, OurInference, RivalInference, Shape, to_device
from torch import Tensor, nn

import training
from dasnet_lightning.detectors.fold_batchnorm import fold_norms
from dasnet_lightning.functional.regions import regions_by_class, regions_by_instance
from dasnet_lightning.functional.windows import box_windows
from dasnet_lightning.inference.export.graphs import BoxMaskGraph, read_levels
from dasnet_lightning.models.dasnet import DASNet, build_dasnet
from dasnet_lightning.models.semantic import decode_foreground
from dasnet_lightning.nn.heads import SemanticHead
from dasnet_lightning.types import Detections

LIGHT_RIVAL = "fasterrcnn_mobilenet_v3_large_320_fpn + masks"
PRECISIONS = ("fp32", "bf16", "compiled")  # compiled: bf16 and torch.compile
SIDE = 0.3  # of the boxes, in images
Part = dict[str, Any] | list[dict[str, Any]]


def build(args: argparse.Namespace, device: torch.device, decoder: str = "zoom") -> DASNet:
    """Our network as `load` makes it ready."""
    torch.manual_seed(0)
    options = {"image_size": args.size}
    model = build_dasnet(NUM_CLASSES, args.detector, options, decoder=decoder, head=SemanticHead).to(device).eval()
    fold_norms(model.detector)
    return model


def in_precision(run: Callable[[], Any], precision: str, device: torch.device) -> Callable[[], Any]:
    """The call in fp32, or in bf16."""
    return run if precision == "fp32" else partial(autocast, run, device)


def compile_parts(model: DASNet, backend: str) -> None:
    """Compile the backbone, whose shape is fixed, and the decoder, for any number of boxes."""
    backbone = model.detector.detector.backbone
    backbone.forward = torch.compile(backbone.forward, backend=backend)
    model.decoder.forward = torch.compile(model.decoder.forward, backend=backend, dynamic=True)


@torch.inference_mode()
def measure_inference(
    args: argparse.Namespace, device: torch.device, late: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """A line for each precision, batch and number of boxes."""
    for precision in args.precisions:
        model = build(args, device)
        if precision == "compiled":
            compile_parts(model, args.backend)
        for batch in args.batches:
            images = torch.rand(batch, 3, args.size, args.size, device=device)
            for number in args.boxes:
                line = {"precision": precision, "batch": batch, "boxes": number}
                yield line | ({"skipped": True} if late() else infer(args, model, images, number, precision, device))


def infer(
    args: argparse.Namespace, model: DASNet, images: Tensor, number: int, precision: str, device: torch.device
) -> dict[str, Any]:
    """Milliseconds of an image for its parts and for the rival, and the peak of memory."""
    placed = [to_device(scatter_boxes(number, SIDE, args.size), device)] * len(images)
    ours = OurInference(model, args.candidates, number)
    network = RIVALS[LIGHT_RIVAL](Shape(args.size, number), 0).to(device)
    rival = RivalInference(network, args.candidates)
    for side in (ours, rival):
        side.prepare(images, placed)
    pyramid, regions = model.detector.features(images), regions_by_instance(placed)
    runs: dict[str, Callable[[], Any]] = {
        "features": lambda: model.detector.features(images),
        "detect": lambda: model.detector.detect(pyramid),
        "decode": lambda: model.score(pyramid, regions),
        "ours": lambda: ours(images),
        "rival": lambda: rival(images),
    }
    runs = {name: in_precision(run, precision, device) for name, run in runs.items()}
    spent = time_interleaved(runs, device, args.repetitions, warmup=2)
    peaks = {f"{name} peak_mb": round(peak_bytes(runs[name], device)[0] / 1e6, 1) for name in ("ours", "rival")}
    times = {f"{name} ms": round(1e3 * seconds / len(images), 3) for name, seconds in spent.items()}
    return times | peaks | {"times ours": round(spent["rival"] / spent["ours"], 2)}


def measure_training(
    args: argparse.Namespace, device: torch.device, late: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """A line for each precision and batch: milliseconds of an image in each stage, and in a step of the rival."""
    for precision in args.precisions:
        for batch in args.batches:
            line: dict[str, Any] = {"precision": precision, "batch": batch}
            if late():
                yield line | {"skipped": True}
                continue
            options = {
                "detector": args.detector, "decoder": "zoom", "frozen_blocks": 0, "rivals": [LIGHT_RIVAL], "trunks": [3],
                "size": args.size, "batch": batch, "objects": 5, "side": SIDE, "rois": args.rois, "compile": False,
            }  # fmt: skip
            torch.manual_seed(0)
            shape = argparse.Namespace(**options)
            runs = training.build(shape, training.make_batch(shape, device))
            if precision == "compiled":
                runs[training.STAGE_TWO] = compiled_stage_two(shape, args.backend, device)
            runs = {name: in_precision(run, precision, device) for name, run in runs.items()}
            peaks = {f"{name} peak_mb": round(peak_bytes(run, device)[0] / 1e6, 1) for name, run in runs.items()}
            spent = time_interleaved(runs, device, args.repetitions, warmup=2)
            yield line | {f"{name} ms": round(1e3 * each / batch, 3) for name, each in spent.items()} | peaks


def compiled_stage_two(shape: argparse.Namespace, backend: str, device: torch.device) -> Callable[[], Any]:
    """A step of stage two with a compiled backbone and decoder."""
    compiled = torch.compile
    torch.compile = partial(compiled, backend=backend)
    try:
        arguments = argparse.Namespace(**{**vars(shape), "compile": True})
        return training.stage_two(arguments, training.make_batch(shape, device))
    finally:
        torch.compile = compiled


def measure_data(args: argparse.Namespace, device: torch.device, late: Callable[[], bool]) -> dict[str, Any]:
    """Images a second of one core with made-up photographs."""
    with tempfile.TemporaryDirectory() as folder:
        root = data_path.make_photographs(Path(folder), args.images)
        source = data_path.VOCSource(root, "train")
        records = [record for record in source.records if record.has_masks]
        ways = data_path.build_ways(source, records, args.size)
        order = list(range(len(records)))
        seconds = data_path.time_in_turns(ways, [order] * 2)
    return {f"{name} images/s": round(1 / spent, 1) for name, spent in seconds.items()}


@torch.inference_mode()
def measure_exactness(args: argparse.Namespace, device: torch.device, late: Callable[[], bool]) -> dict[str, Any]:
    """Largest differences of probabilities: windows against whole maps (`light`), and bf16 against fp32 (both)."""
    found = to_device(scatter_boxes(10, SIDE, args.size), device)
    images = torch.rand(1, 3, args.size, args.size, device=device)
    result: dict[str, Any] = {}
    light, zoom = build(args, device, "light"), build(args, device)
    for model in (light, zoom):  # logits as wide as after a training, but not certain everywhere
        model.head.score.weight.mul_(2 / float(model.score(*inputs(model, images, found)).float().std()))
    pyramid, regions = light.detector.features(images), regions_by_class([found])
    windows = box_windows(found.boxes, pyramid.size)
    inside = torch.zeros(args.size, args.size, dtype=torch.bool, device=device)
    for x0, y0, x1, y1 in found.boxes.long().tolist():
        inside[y0:y1, x0:x1] = True
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
        whole = light.decode(pyramid, regions).float().softmax(dim=1)[0, 1]
        local = decode_foreground(light, pyramid, regions, windows, 16)[0]
    result["box-local against whole maps"] = float((whole - local)[inside].abs().max())
    for name, model in (("light", light), ("zoom", zoom)):
        exact = model.score(*inputs(model, images, found)).float()
        rough = autocast(lambda model=model: model.score(*inputs(model, images, found)), device).float()
        masks = [(logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]) > 0 for logits in (exact, rough)]
        union = (masks[0] | masks[1]).sum()
        result[f"{name}, bf16 against fp32: IoU of masks"] = float((masks[0] & masks[1]).sum() / union.clamp(min=1))
        result[f"{name}, bf16 against fp32: relative"] = float((exact - rough).abs().max() / exact.abs().max())
    return result


def inputs(model: DASNet, images: Tensor, found: Detections) -> tuple[Any, Any]:
    """Features and regions: what a decode reads."""
    return model.detector.features(images), regions_by_instance([found])


@torch.inference_mode()
def measure_compilation(args: argparse.Namespace, device: torch.device, late: Callable[[], bool]) -> dict[str, Any]:
    """Graphs that are made for the first number of boxes, and for all others together."""
    torch._dynamo.reset()
    model = build(args, device)
    made: list[int] = []

    def count(graph: Any, example: Any) -> Any:
        made.append(len(made))
        return graph.forward

    decode = torch.compile(BoxMaskGraph(model), backend=count, dynamic=True)
    pyramid = model.detector.features(torch.rand(1, 3, args.size, args.size, device=device))
    levels = [pyramid.levels[level] for level in read_levels(model)]
    counts = {}
    for number in (7, 8, 3, 100, 2, 40, 1, 0, 13, 64):
        before = len(made)
        decode(to_device(scatter_boxes(number, SIDE, args.size), device).boxes, *levels)
        counts[str(number)] = len(made) - before
    return {"graphs made by number of boxes, in this order": counts, "graphs": len(made)}


def measure_processes(args: argparse.Namespace, device: torch.device, late: Callable[[], bool]) -> dict[str, Any]:
    """Gradients over processes equal those of one, and gigabytes a second of an all-reduce."""
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        torch.multiprocessing.spawn(run_process, (count, port, device.type, args.numbers, str(out)), nprocs=count)
        return json.loads(out.read_text())


def run_process(rank: int, count: int, port: int, kind: str, numbers: int, out: str) -> None:
    """One process of measure_processes."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    backend = "nccl" if kind == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, rank=rank, world_size=count)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3).to(device)
    data = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    layer(data).square().mean().backward()
    alone = layer.weight.grad.clone()
    layer.zero_grad()
    together = nn.parallel.DistributedDataParallel(layer)  # must live until the gradients are averaged
    together(data[rank : rank + 1]).square().mean().backward()
    difference = float((layer.weight.grad - alone).abs().max())
    values = torch.ones(numbers, device=device)
    torch.distributed.all_reduce(values)
    right = bool((values == count).all())
    start = time.perf_counter()
    for _ in range(5):
        torch.distributed.all_reduce(values)
    float(values[0])  # waits
    rate = 5 * 4 * numbers / (time.perf_counter() - start) / 1e9
    if rank == 0:
        result = {"backend": backend, "processes": count, "sum is right": right, "gradient difference": difference}
        Path(out).write_text(json.dumps(result | {"all-reduce GB/s": round(rate, 3)}))
    torch.distributed.destroy_process_group()


PARTS: dict[str, Callable[..., Any]] = {
    "exactness": measure_exactness,
    "compilation": measure_compilation,
    "processes": measure_processes,
    "data": measure_data,
    "inference": measure_inference,
    "training": measure_training,
}


def run_part(measure: Callable[..., Any], args: argparse.Namespace, device: torch.device, end: float) -> Part:
    """The result of a part, or its error."""
    try:
        result = measure(args, device, lambda: time.monotonic() > end)
        return result if isinstance(result, dict) else list(result)
    except Exception as error:  # the other parts are worth having
        traceback.print_exc(file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def main() -> int:
    """Print the document; return 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small networks, few repetitions, on the CPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="inference and training stop after them")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="NAME")
    args = parser.parse_args()
    full = {
        "detector": "ssd320_mobilenet_v2", "size": 320, "batches": (1, 8, 32), "boxes": (1, 10, 100), "repetitions": 5,
        "precisions": PRECISIONS, "candidates": 100, "rois": 512, "images": 64, "numbers": 2**24, "backend": "inductor",
    }  # fmt: skip
    short = {
        "detector": "ssd_tiny", "size": 96, "batches": (1, 2), "boxes": (1, 3), "repetitions": 1,
        "candidates": 8, "rois": 8, "images": 2, "numbers": 2**10, "backend": "eager",
    }  # fmt: skip
    vars(args).update(full | (short if args.smoke else {}))
    device = torch.device("cuda" if torch.cuda.is_available() and not args.smoke else "cpu")
    if device.type == "cpu" and not args.smoke:
        parser.error("there is no GPU here: give --smoke for the short form on the CPU")
    end = time.monotonic() + 60 * args.minutes
    document: dict[str, Any] = {"setting": setting(device, smoke=args.smoke, gpus=torch.cuda.device_count())}
    for name in args.parts:
        print(f"on_gpu: {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        document[name] = run_part(PARTS[name], args, device, end)
        document.setdefault("seconds", {})[name] = round(time.monotonic() - start, 1)
    lines = [line for name in ("inference", "training") for line in document.get(name, ()) if isinstance(line, dict)]
    document["skipped"] = sum("skipped" in line for line in lines)
    print(json.dumps(document, indent=1))
    return int(any("error" in document[name] for name in args.parts))


if __name__ == "__main__":
    sys.exit(main())
