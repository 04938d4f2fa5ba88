"""Starts the processes of a run before its first stage, as in `dasnet train --devices 2 --strategy ddp`.

Lightning starts further processes inside the first `fit`, by running the command again for each device. A run has several
stages with work between them, so its processes start first, by the same means. Everything after that runs on every rank, and
files are written inside `run_on_rank_zero`. Processes that torchrun or SLURM started are used as they are.
"""

import logging
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.imports import _IS_INTERACTIVE

from dasnet_lightning.distributed import RAISED_ON_RANK_ZERO, is_distributed, is_rank_zero
from dasnet_lightning.errors import ConfigError, DasnetError, Stopped
from dasnet_lightning.training.config import TrainerSettings

GRACE = 10.0  # seconds until other processes are killed
FOLLOWED = 70  # exit code of a process that ends because rank zero failed


@contextmanager
def processes(settings: TrainerSettings) -> Iterator[None]:
    """Run the body on every rank. Only rank zero prints; if it fails, it ends the other processes.

    Raises:
        ConfigError: the settings cannot start the processes of several stages.
    """
    if settings.devices == settings.num_nodes == 1 and settings.strategy == "auto":
        yield
        return
    check_strategy(settings)
    rejoin_after_restart()
    fabric = L.Fabric(
        accelerator=settings.accelerator, devices=settings.devices, num_nodes=settings.num_nodes, strategy="ddp"
    )
    fabric.launch()
    if not is_rank_zero():
        logging.getLogger("dasnet_lightning").setLevel(logging.ERROR)  # rank zero warns
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            try:
                yield
            except Stopped as stopped:  # rank zero reports it
                raise SystemExit(128 + stopped.signal) from stopped
            except Exception as error:
                if RAISED_ON_RANK_ZERO in getattr(error, "__notes__", ()):
                    raise SystemExit(FOLLOWED) from error
                raise
        return
    try:
        yield
    except BaseException as error:
        others: Sequence[subprocess.Popen[Any]] = getattr(fabric.strategy.launcher, "procs", ())
        failed = end_processes(others, GRACE)
        if failed and not isinstance(error, DasnetError | KeyboardInterrupt):
            raise DasnetError(f"process {failed[0]} of {len(others) + 1} ended with an error, shown above") from error
        raise


def rejoin_after_restart() -> None:
    """Create the process group under fresh keys after torchrun restarted the processes. Collective.

    torchrun's store still holds the addresses of the earlier processes under the keys that torch uses. A process that reads
    one before it is overwritten hangs forever (seen with torch 2.15.0).
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if not attempt or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or is_distributed():
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world_size, is_master=False)
    fresh = dist.PrefixStore(f"dasnet_lightning/attempt/{attempt}", store)
    backend = None if torch.cuda.is_available() else "gloo"  # None: for tensors on processors and on GPUs
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=world_size)


def check_strategy(settings: TrainerSettings) -> None:
    """Raise ConfigError for a strategy or a notebook that cannot start the processes of several stages."""
    if settings.strategy not in ("auto", "ddp"):
        raise ConfigError(
            f"strategy '{settings.strategy}': a run starts the processes of its stages with 'ddp' or 'auto'; "
            "use other strategies for one stage, in `dasnet fit` or a Trainer"
        )
    if _IS_INTERACTIVE and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            f"{settings.devices} devices: a notebook cannot start the processes of a run; use `!dasnet train ...` in a "
            "cell, or train one stage with Trainer(strategy='ddp_notebook')"
        )


def end_processes(others: Sequence[subprocess.Popen[Any]], grace: float) -> list[int]:
    """Wait for the other processes, kill those that do not end, and return the ranks that failed on their own."""
    deadline, failed = time.monotonic() + grace, []
    for number, process in enumerate(others, start=1):
        try:
            if process.wait(max(0.0, deadline - time.monotonic())) not in (0, FOLLOWED):
                failed.append(number)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return failed
