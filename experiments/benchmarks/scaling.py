"""What more processes cost and bring: `python experiments/benchmarks/scaling.py`.

Measures training steps of both stages in one and in two processes (gloo, one thread each) on made-up images: alone, with
the gradients left where they are (`no_sync`), and with DDP's exchange; and the bytes that DDP puts into its buckets, by a
hook. The steps of a process take turns. From the traffic it then computes what more GPUs would do, with figures that are
not measured here and are options: the speed of a GPU, the bandwidth between GPUs, images a second of a loader's core.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import as_markdown, setting, write_results
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from dasnet_lightning.functional.losses import graph_zero
from dasnet_lightning.tasks.config import NetworkConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.semantic import SemanticTask
from dasnet_lightning.types import Batch
from training import make_batch

NUM_CLASSES = 21
PAPER_PFLOP = 309.0  # the whole semantic training of the paper: 30,000 steps of 32 images
PAPER_STEPS, PAPER_BATCH = 30_000, 32
SETTINGS = {
    "light": {"detector": "ssd320_mobilenet_v2", "decoder": "light"},
    "paper": {"detector": "ssd320_vgg16", "decoder": "paper"},
    "tiny": {"detector": "ssd_tiny", "decoder": "light"},
}


class Loss(nn.Module):
    """The loss of a task as a forward, which is what DDP wraps."""

    def __init__(self, task: DetectionTask | InstanceTask | SemanticTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Batch) -> Tensor:
        found = self.task.losses(batch)
        losses = found[0] if isinstance(found, tuple) else found
        return torch.stack([graph_zero(self.task.parameters()), *losses.values()]).sum()


def count_bytes(state: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's own exchange, with the bytes counted."""
    state[0] += bucket.buffer().nbytes
    return allreduce_hook(None, bucket)  # type: ignore[arg-type]


def time_steps(rank: int, processes: int, port: int, stage: str, args: argparse.Namespace, answer: Any) -> None:
    """The body of a process: medians of its steps; the first one answers."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    torch.manual_seed(0)
    names = SETTINGS[args.network]
    if stage == "detector":
        loss = Loss(DetectionTask(NUM_CLASSES, detector=names["detector"]).train())
    else:
        loss = Loss(InstanceTask(NUM_CLASSES, network=NetworkConfig(**names)).train())
    parallel, traffic = DistributedDataParallel(loss), [0]
    parallel.register_comm_hook(traffic, count_bytes)
    batch = make_batch(args, torch.device("cpu"))

    def step() -> float:
        started = time.perf_counter()
        parallel.zero_grad()
        parallel(batch).backward()
        return time.perf_counter() - started

    def alone() -> float:
        with parallel.no_sync():
            return step()

    times: dict[str, list[float]] = {"exchanged": [], "kept": []}
    for repetition in range(args.repetitions + 2):  # the first ones prepare kernels and buckets
        for name, run in (("kept", alone), ("exchanged", step)):
            dist.barrier()
            before = traffic[0]
            spent = run()
            sent = traffic[0] - before
            if repetition >= 2:
                times[name].append(spent)
    learned = sum(parameter.numel() for parameter in loss.parameters() if parameter.requires_grad)
    if rank == 0:
        medians = {name: statistics.median(spent) for name, spent in times.items()}
        answer.put(medians | {"bytes": sent, "parameters": learned})
    dist.destroy_process_group()


def measure(stage: str, processes: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run the processes of one line and take the first one's answer."""
    fork = multiprocessing.get_context("spawn")  # a process that has computed gradients cannot be forked
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answer = fork.Queue()
    started = [
        fork.Process(target=time_steps, args=(rank, processes, port, stage, args, answer)) for rank in range(processes)
    ]
    for process in started:
        process.start()
    found = None
    while found is None:
        with contextlib.suppress(queue.Empty):
            found = answer.get(timeout=1)
        if found is None and any(process.exitcode for process in started):
            raise RuntimeError("a process ended with an error, told above")
    for process in started:
        process.join()
    return {
        "network": args.network,
        "stage": stage,
        "processes": processes,
        "step without exchange, s": round(found["kept"], 3),
        "step, s": round(found["exchanged"], 3),
        "images/s": round(processes * args.batch / found["exchanged"], 2),
        "parameters that learn, M": round(found["parameters"] / 1e6, 2),
        "gradients a step, MB": round(found["bytes"] / 1e6, 1),
    }


def project(gpus: int, gradient_mb: float, args: argparse.Namespace) -> dict[str, Any]:
    """What the paper's semantic training would do on so many GPUs, each with the paper's batch of 32.

    The exchange is a ring: every GPU sends and receives 2 (n - 1) / n of the gradients, over the network once there is
    more than one machine of 8. It may overlap the backward pass; counted here as if it did not.
    """
    flop = PAPER_PFLOP * 1e15 / PAPER_STEPS
    compute = flop / (args.tflops * 1e12)
    gbytes = args.network_gbytes if gpus > 8 else args.link_gbytes
    exchange = 2 * (gpus - 1) / gpus * gradient_mb / 1e3 / gbytes
    images = gpus * PAPER_BATCH / (compute + exchange)
    return {
        "GPUs": gpus,
        "images a step": gpus * PAPER_BATCH,
        "compute, ms": round(1e3 * compute, 1),
        "exchange, ms": round(1e3 * exchange, 2),
        "efficiency": round(compute / (compute + exchange), 3),
        "images/s": round(images),
        "loader cores for each GPU": round(images / gpus / args.images_per_core, 1),
        "30,000 steps of 32 images, min": round(PAPER_STEPS * PAPER_BATCH / images / 60, 1),
    }


def main() -> None:
    """Print a JSON line for each measurement, then both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(SETTINGS), default="light")
    parser.add_argument("--stages", nargs="+", choices=["detector", "decoder"], default=["detector", "decoder"])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=2, help="of a process")
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--side", type=float, default=0.3)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--gradients-mb", type=float, default=112.6, help="a step of the projection: the paper's decoder"
    )
    parser.add_argument("--tflops", type=float, default=400.0, help="of a GPU, sustained")
    parser.add_argument("--link-gbytes", type=float, default=300.0, help="a second between GPUs of a machine")
    parser.add_argument("--network-gbytes", type=float, default=25.0, help="a second between machines, for each GPU")
    parser.add_argument("--images-per-core", type=float, default=80.0, help="a second (data_path.py)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for stage in args.stages:
        for processes in (1, 2):
            lines.append(measure(stage, processes, args))
            print(json.dumps(lines[-1]), flush=True)
    more = [project(gpus, args.gradients_mb, args) for gpus in (1, 8, 64)]
    print("\n" + as_markdown(lines) + "\n" + as_markdown(more))
    about = setting(torch.device("cpu"), batch=args.batch, size=args.size, clock="perf_counter")
    write_results(args.out, "scaling", about, lines)
    assumed = ("gradients_mb", "tflops", "link_gbytes", "network_gbytes", "images_per_core")
    write_results(args.out, "scaling_projection", {name: getattr(args, name) for name in assumed}, more)


if __name__ == "__main__":
    main()
