"""Defaults that depend on the machine."""

import logging
import os
import warnings


def default_precision(accelerator: str) -> str:
    """Return bf16-mixed if the hardware is faster in it, else 16-mixed on a GPU and 32-true on a CPU."""
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    # without AMX, convolutions are slower in bf16 than in fp32, even with AVX-512 bf16 (experiments/benchmarks)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older torch
    return "bf16-mixed" if capabilities.get("amx_bf16") else "32-true"


def default_workers() -> int:
    """Return the number of loader processes: half of the processors, at most 8."""
    return min(8, max(1, count_processors() // 2))


def set_thread_counts(num_workers: int) -> None:
    """Leave one processor to each loader process: two threads on one busy core are slower than one.

    Does nothing if OMP_NUM_THREADS is set.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, count_processors() - num_workers))


def count_processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet_lightning() -> None:
    """Hide Lightning's advertising and advice; its warnings about data stay."""
    import lightning.pytorch  # noqa: F401  (its import sets the levels)

    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        ".*does not have many workers.*",
        ".*log_every_n_steps.*",
        ".*Checkpoint directory.*exists.*",
        ".*isinstance.treespec, LeafSpec.*",  # lightning 2.6.6 with newer versions of torch
    ):
        warnings.filterwarnings("ignore", advice)
