"""What the benchmarks share: turns in one process, medians, operations and memory, and the files with the figures.

Operations are multiply-adds of convolutions and matrix products (a GMAC is 1e9 of them). Peak bytes are those of all
tensors made by a call that are alive at once; parameters and inputs are not among them. On a GPU it is the allocator
that counts them.
"""

import json
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dasnet_lightning.types import Detections

Run = Callable[[], Any]
Line = Mapping[str, Any]


class LiveBytes(TorchDispatchMode):
    """The most bytes that the storages made under it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._see(leaf.untyped_storage(), old)
        return result

    def _see(self, storage: torch.UntypedStorage, old: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in old:
            return
        self.known[key] = weakref.finalize(storage, self._forget, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        self.known.pop(key, None)
        self.live -= size


def gmac(run: Callable[..., Any], *inputs: Any) -> tuple[float, Any]:
    """What a call costs, and its result."""
    with FlopCounterMode(display=False) as counter:
        result = run(*inputs)
    return counter.get_total_flops() / 2e9, result


def peak_bytes(run: Run, device: torch.device) -> tuple[int, Any]:
    """The most bytes that a call holds at once, and its result."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        return torch.cuda.max_memory_allocated(device) - before, result
    with LiveBytes() as counter:
        result = run()
    return counter.peak, result


def costs(run: Run, device: torch.device) -> tuple[float, int, Any]:
    """GMAC and peak bytes of a call, and its result."""
    peak, (cost, result) = peak_bytes(lambda: gmac(run), device)
    return cost, peak, result


def time_interleaved(
    runs: Mapping[str, Run], device: torch.device, repetitions: int, warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each call, all taking turns; the first turns prepare the kernels and do not count.

    Of one thread it is the processor's time: what else the machine does meanwhile is not counted.
    """
    clock = _clock(device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions + warmup):
        for name, run in runs.items():
            _wait(device)
            started = clock()
            run()
            _wait(device)
            if repetition >= warmup:
                times[name].append(clock() - started)
    return {name: statistics.median(spent) for name, spent in times.items()}


def _clock(device: torch.device) -> Callable[[], float]:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def autocast(run: Run, device: torch.device) -> Any:
    """The call in bf16."""
    with torch.autocast(device.type, torch.bfloat16):
        return run()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def scatter_boxes(number: int, side: float, size: int) -> Detections:
    """Square boxes of one side at random places of an image."""
    generator = torch.Generator().manual_seed(number)
    low = torch.rand(number, 2, generator=generator) * (1 - side) * size
    boxes = torch.cat([low, low + side * size], dim=1)
    return Detections(boxes, torch.ones(number, dtype=torch.int64), torch.linspace(1, 0.5, number))


def choose_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def setting(device: torch.device, **more: Any) -> dict[str, Any]:
    """What the figures were measured on, and with what."""
    return {
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clock": _clock(device).__name__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    } | more


def _processor() -> str:
    """Its name, and its kind (family, model) where a virtual machine hides the name."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine()
    pairs = [line.partition(":") for line in path.read_text().splitlines() if ":" in line]
    found = {name.strip(): value.strip() for name, _, value in reversed(pairs)}
    kind = f"family {found.get('cpu family', '?')}, model {found.get('model', '?')}"
    return f"{found.get('model name', platform.machine())} ({kind})"


def as_markdown(lines: Sequence[Line]) -> str:
    """The lines as a table; what was not measured stays empty."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    words = {name for name in names if any(isinstance(line.get(name), str) for line in lines)}
    rows = [names, ["---" if name in words else "---:" for name in names]]
    rows += [[_cell(line.get(name, "")) for name in names] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def write_results(out: Path | None, name: str, about: Line, lines: Sequence[Line]) -> None:
    """NAME.json with the setting and all lines, NAME.md with the table, where a folder is given."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps({"setting": dict(about), "lines": list(lines)}, indent=1) + "\n")
    (out / f"{name}.md").write_text(as_markdown(lines))
