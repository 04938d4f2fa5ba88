"""Short two-stage runs of `dasnet train` in processes that can be killed, and what they left behind.

The processes are forked from this one, which has imported everything and computed nothing: starting one takes a fraction
of a second.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from dasnet_lightning.cli import demo, segment, train  # noqa: F401  (imported once, before the forks)
from dasnet_lightning.cli.main import main as dasnet
from dasnet_lightning.data.augmentation import transforms  # noqa: F401
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.training import report  # noqa: F401

OPTIONS = (
    *("--mask-budget", "8", "--detector", "ssd_tiny", "--image-size", "64", "--accelerator", "cpu"),
    *("--detector-batch-size", "4", "--batch-size", "4", "--detector-steps", "24", "--steps", "16"),
    *("--precision", "32-true", "--checkpoint-every", "3", "--deterministic"),
)
STAGES = ("detector", "masks-8")
PREFIX = "model.detector.frozen.module."
LIMIT = 300.0  # seconds that any run may take

Prepare = Callable[[], None]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: killed by that signal), its time, what it printed."""

    code: int
    seconds: float
    printed: str


def start(data: Path, out: Path, prepare: Prepare | None = None, options: Sequence[str] = ()) -> BaseProcess:
    """Start a run in a process group of its own; `prepare` runs in the new process first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(data, out, prepare, options))
    process.start()
    return process


def finish(process: BaseProcess, out: Path, started: float) -> Ended:
    """Wait for a run; one that hangs is killed and fails."""
    process.join(LIMIT)
    if process.is_alive():
        kill(process, signal.SIGKILL)
        process.join()
        raise AssertionError(f"{out}: did not end within {LIMIT:.0f} s")
    log = _log(out)
    printed = log.read_text() if log.is_file() else ""
    log.unlink(missing_ok=True)
    assert process.exitcode is not None
    return Ended(process.exitcode, time.perf_counter() - started, printed)


def run(data: Path, out: Path, prepare: Prepare | None = None, options: Sequence[str] = ()) -> Ended:
    """A run to its end."""
    started = time.perf_counter()
    return finish(start(data, out, prepare, options), out, started)


def run_and_signal(data: Path, out: Path, number: signal.Signals, after: float) -> tuple[Ended, float]:
    """A run whose whole process group gets a signal after some seconds; also the seconds that it then took to leave."""
    started = time.perf_counter()
    process = start(data, out)
    process.join(after)
    told = time.perf_counter()
    kill(process, number)
    ended = finish(process, out, started)
    return ended, time.perf_counter() - told


def kill(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal to the process and to what it has started."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def wait_for(path: Path, process: BaseProcess) -> None:
    """Until a file exists, or the process has ended."""
    until = time.perf_counter() + LIMIT
    while not path.exists() and process.is_alive() and time.perf_counter() < until:
        time.sleep(0.01)


def weights(out: Path) -> dict[str, Mapping[str, Any]]:
    """The final checkpoints of both stages."""
    return {stage: read_checkpoint(out / stage / "final.ckpt") for stage in STAGES}


def expect_same(out: Path, reference: Path) -> None:
    """Raise AssertionError unless both runs ended with the same bits, steps, images and metrics, and a frozen detector."""
    found, wanted = weights(out), weights(reference)
    for stage in STAGES:
        for name, value in wanted[stage]["state_dict"].items():
            assert torch.equal(found[stage]["state_dict"][name], value), f"{out}: {stage}: {name} differs"
        # not "epoch": Lightning's count is one less where nothing but the end of a stage was left to do; which images were
        # drawn, and how many batches, is what the data module says
        for name in ("global_step", "MixedSupervisionDataModule"):
            assert found[stage][name] == wanted[stage][name], f"{out}: {stage}: {name} differs"
        figures = [folder / stage / "metrics.json" for folder in (out, reference)]
        assert figures[0].read_text() == figures[1].read_text(), f"{out}: {stage}: other figures"
    expect_frozen(out)


def expect_frozen(out: Path) -> None:
    """Raise AssertionError unless stage two's detector, parameters and buffers, is stage one's to the bit."""
    found = weights(out)
    second = found["masks-8"]["state_dict"]
    for name, value in found["detector"]["state_dict"].items():
        assert torch.equal(second[PREFIX + name.removeprefix("detector.")], value), f"{out}: {name} is not frozen"


def _run(data: Path, out: Path, prepare: Prepare | None, options: Sequence[str]) -> None:
    os.setsid()
    log = os.open(_log(out), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    code = dasnet(["train", str(data), "--out", str(out), *OPTIONS, *options])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _log(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")
