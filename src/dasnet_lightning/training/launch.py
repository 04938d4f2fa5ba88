"""The processes of a whole run: `dasnet train --devices 2 --strategy ddp` starts them before its first stage.

Lightning starts the processes of a training inside its first `fit`, by running the command once more for each further
device. A run has several stages and much around them; so that all of it knows how many processes there are, they start
first, by the same means, and every line after that runs in all of them: files are written inside `processes.once`.
Processes that torchrun or SLURM has started are taken as they are.
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

GRACE = 10.0  # seconds for the other processes to end by themselves
FOLLOWED = 70  # the exit code of a process that ends because of the first one's error


@contextmanager
def processes(settings: TrainerSettings) -> Iterator[None]:
    """Run what follows in all processes that the settings ask for. Raises ConfigError where that cannot be.

    Only the first one prints results. When it ends with an error, it ends the others.
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
        logging.getLogger("dasnet_lightning").setLevel(logging.ERROR)  # the first one warns
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            try:
                yield
            except Stopped as stopped:  # the first one says so
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
            raise DasnetError(f"process {failed[0]} of {len(others) + 1} ended with an error, told above") from error
        raise


def rejoin_after_restart() -> None:
    """Where torchrun has started the processes anew after one ended, join them in a fresh part of its store.

    torchrun's store still holds the addresses of the processes before; torch joins under the same keys, and where one
    reads such an address before it is overwritten the group never comes together (seen with torch 2.15.0). Collective.
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
    """Raises ConfigError for a strategy, or a place to run at, that cannot start the processes of several stages."""
    if settings.strategy not in ("auto", "ddp"):
        raise ConfigError(
            f"strategy '{settings.strategy}': a run has several stages and starts its processes once, with 'ddp' or 'auto'; "
            "others are for one stage, in `dasnet fit` or a Trainer"
        )
    if _IS_INTERACTIVE and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            f"{settings.devices} devices: a notebook cannot start the processes of a whole run; run `!dasnet train ...` in "
            "a cell of it, or train one stage with Trainer(strategy='ddp_notebook')"
        )


def end_processes(others: Sequence[subprocess.Popen[Any]], grace: float) -> list[int]:
    """Wait for the other processes to end, kill those that do not; returns the ranks that ended with an error of their own."""
    deadline, failed = time.monotonic() + grace, []
    for number, process in enumerate(others, start=1):
        try:
            if process.wait(max(0.0, deadline - time.monotonic())) not in (0, FOLLOWED):
                failed.append(number)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return failed
