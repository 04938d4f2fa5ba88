"""Is bf16 quicker than fp32 on this processor? Forward and backward of the decoder's kind of convolutions, channels_last.

`python experiments/benchmarks/precision.py` interleaves both precisions in one process and prints the medians and their
ratio; `dasnet train` chooses its default precision accordingly (cli/hardware.py).
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn

SHAPES = ((128, 128, 20), (80, 64, 40), (96, 48, 80))  # channels in, out, side
PRECISIONS = (torch.float32, torch.bfloat16)


def seconds(convolution: nn.Conv2d, inputs: torch.Tensor) -> float:
    """One forward and backward pass."""
    started = time.perf_counter()
    convolution(inputs).sum().backward()
    return time.perf_counter() - started


def main() -> None:
    """Print one JSON line for each shape: medians in milliseconds, and how many times quicker bf16 is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    for channels, out, side in SHAPES:
        layer = nn.Conv2d(channels, out, 3, padding=1)
        layers = {
            p: nn.Conv2d(channels, out, 3, padding=1).to(p, memory_format=torch.channels_last) for p in PRECISIONS
        }
        for copy in layers.values():
            copy.load_state_dict(layer.state_dict())
        image = torch.randn(args.batch, channels, side, side).to(memory_format=torch.channels_last)
        inputs = {p: image.to(p).requires_grad_() for p in PRECISIONS}
        times: dict[torch.dtype, list[float]] = {p: [] for p in PRECISIONS}
        for repetition in range(args.repetitions + 2):
            for p in PRECISIONS:
                spent = seconds(layers[p], inputs[p])
                if repetition >= 2:  # the first ones prepare the kernels
                    times[p].append(spent)
        single, half = (1e3 * statistics.median(times[p]) for p in PRECISIONS)
        shape = f"{channels}->{out} at {side}x{side}"
        print(
            json.dumps(
                {
                    "shape": shape,
                    "fp32_ms": round(single, 2),
                    "bf16_ms": round(half, 2),
                    "ratio": round(single / half, 2),
                }
            )
        )
    print(json.dumps({"amx_bf16": torch.cpu.get_capabilities().get("amx_bf16"), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
