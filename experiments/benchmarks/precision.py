"""Is bf16 quicker than fp32 on this processor? Forward and backward of the decoder's kind of convolutions, channels_last.

`python experiments/benchmarks/precision.py` interleaves both precisions in one process and prints the medians and their
ratio; `dasnet train` chooses its default precision accordingly (training/hardware.py).
"""

import argparse
import copy
import json
from functools import partial
from pathlib import Path

import torch
from harness import setting, time_interleaved, write_results
from torch import nn

SHAPES = ((128, 128, 20), (80, 64, 40), (96, 48, 80))  # channels in, out, side
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def step(convolution: nn.Conv2d, inputs: torch.Tensor) -> None:
    """One forward and backward pass."""
    convolution(inputs).sum().backward()


def main() -> None:
    """Print one JSON line for each shape: medians in milliseconds, and how many times quicker bf16 is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, help="write precision.json and precision.md there")
    args = parser.parse_args()
    device, lines = torch.device("cpu"), []
    for channels, out, side in SHAPES:
        layer = nn.Conv2d(channels, out, 3, padding=1).to(memory_format=torch.channels_last)
        image = torch.randn(args.batch, channels, side, side).to(memory_format=torch.channels_last)
        runs = {
            name: partial(step, copy.deepcopy(layer).to(precision), image.to(precision).requires_grad_())
            for name, precision in PRECISIONS.items()
        }
        spent = time_interleaved(runs, device, args.repetitions, warmup=2)
        times = {f"{name}_ms": round(1e3 * seconds, 2) for name, seconds in spent.items()}
        ratio = round(spent["fp32"] / spent["bf16"], 2)
        lines.append({"shape": f"{channels}->{out} at {side}x{side}", **times, "ratio": ratio})
        print(json.dumps(lines[-1]), flush=True)
    about = setting(device, batch=args.batch, amx_bf16=torch.cpu.get_capabilities().get("amx_bf16"))
    print(json.dumps(about))
    write_results(args.out, "precision", about, lines)


if __name__ == "__main__":
    main()
