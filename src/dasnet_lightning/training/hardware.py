"""What the machine offers, turned into defaults that a user can overrule."""

import logging
import os
import warnings


def default_precision(accelerator: str) -> str:
    """bf16 where the processor computes in it, else full precision."""
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    # processors with AVX-512 bf16 but without AMX convolve more slowly in bf16 than in fp32 (experiments/benchmarks)
    capabilities: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older versions of torch cannot tell
    return "bf16-mixed" if capabilities.get("amx_bf16") else "32-true"


def default_workers() -> int:
    """Loader processes: half of the processors, at most 8, so that training keeps the others."""
    return min(8, max(1, count_processors() // 2))


def set_thread_counts(num_workers: int) -> None:
    """Leave a processor to each loader process: threads that wait for one another on a busy core are slower than one.

    OMP_NUM_THREADS, where it is set, is somebody's decision and stays.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, count_processors() - num_workers))


def count_processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet_lightning() -> None:
    """Keep Lightning's advertising and advice out of a command's output; its warnings about data stay."""
    import lightning.pytorch  # noqa: F401  (it sets the levels when imported, so they are lowered after that)

    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        ".*does not have many workers.*",
        ".*log_every_n_steps.*",
        ".*Checkpoint directory.*exists.*",
        ".*isinstance.treespec, LeafSpec.*",  # lightning 2.6.6 asks newer versions of torch in an older way
    ):
        warnings.filterwarnings("ignore", advice)
