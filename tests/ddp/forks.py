"""Runs a function in several real processes that find each other over gloo, under a hard time limit.

They are forked from a server that has imported the library and computed nothing: as quick as a fork of the tests' own
process, which cannot be forked once it has computed gradients.
"""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dasnet_lightning.training.hardware import quiet_lightning

LIMIT = 60.0  # seconds

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "lightning.pytorch",
        "torchmetrics.detection",
        *(f"dasnet_lightning.tasks.{task}" for task in ("detection", "semantic", "instance")),
        *(
            f"dasnet_lightning.{module}"
            for module in ("data.datamodule", "data.synthetic.dataset", "training.run", "cli.fit")
        ),
    ]
)


def run(count: int, function: Callable[..., Any], *arguments: Any, limit: float = LIMIT) -> list[Any]:
    """What each of `count` processes returns: tensors and plain values. Fails where one fails or takes longer than `limit`."""
    with TemporaryDirectory() as name:
        folder, port = Path(name), _free_port()
        workers = [
            _context.Process(target=_work, args=(folder, rank, count, port, function, arguments))
            for rank in range(count)
        ]
        for worker in workers:
            worker.start()
        deadline = time.monotonic() + limit
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank, worker in enumerate(workers) if worker.is_alive()]
        for worker in workers:
            worker.kill()
            worker.join()
        errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
        assert not errors, "\n".join(errors)
        assert not late, f"processes {late} of {count} did not end within {limit} s"
        assert [worker.exitcode for worker in workers] == [0] * count
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _work(folder: Path, rank: int, count: int, port: int, function: Callable[..., Any], arguments: Any) -> None:
    # as Lightning's launcher sets them; PROCESSES is ours, for Lightning deletes WORLD_SIZE after each training
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(count), "PROCESSES": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    quiet_lightning()
    try:
        torch.save(function(*arguments), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.error").write_text(f"process {rank} of {count}: {traceback.format_exc()}")
        os._exit(1)  # without waiting for the others


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
