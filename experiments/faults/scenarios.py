"""What can go wrong in a run, each provoked for real; every scenario raises AssertionError where something was lost.

All but the elastic one run in one process and must end, once they are continued, with the bits of a run that nothing
happened to.
"""

import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

import runs
import torch
from runs import Ended, expect_same, run, run_and_signal

LEAVE_WITHIN = 20.0  # seconds from a signal to the end of the process
MAY_GROW = 15.0  # MB: noise of the allocator
MISSING_LINE = "no line of it names {}"

Scenario = Callable[["Scene"], str]


class Scene:
    """Where scenarios play: a data set, a run that nothing happened to, and folders for the others."""

    def __init__(self, data: Path, folder: Path, kills: int = 20, seed: int = 0, short: bool = False) -> None:
        self.data, self.folder, self.kills, self.short = data, folder, kills, short
        self.random = random.Random(seed)
        self.reference = folder / "reference"
        ended = run(data, self.reference)
        assert ended.code == 0, ended.printed
        self.seconds = ended.seconds

    def out(self, name: str) -> Path:
        """A new folder for a run."""
        out = self.folder / name
        shutil.rmtree(out, ignore_errors=True)
        return out

    def moment(self) -> float:
        """Some time in the middle of a run."""
        return self.random.uniform(0.05, 0.95) * self.seconds

    def continued(self, out: Path) -> Ended:
        """Start a run again, which must end well and with the reference's bits."""
        ended = run(self.data, out)
        assert ended.code == 0, ended.printed
        expect_same(out, self.reference)
        return ended


def sigkill_at_random_moments(scene: Scene) -> str:
    """SIGKILL to the whole process group, then the same command again; moments that came too late are drawn again."""
    killed = late = 0
    while killed < scene.kills:
        out = scene.out(f"kill-{killed + late}")
        ended, _ = run_and_signal(scene.data, out, signal.SIGKILL, scene.moment())
        if ended.code == -signal.SIGKILL:
            killed += 1
            scene.continued(out)
        else:
            late += 1
            assert late <= scene.kills, f"{late} runs had ended before they were hit"
    return f"{killed} runs killed, {killed} continued to the same bits"


def sigkill_again_and_again(scene: Scene) -> str:
    """SIGKILL in the run and in each of its continuations, at ever later moments."""
    out, times = scene.out("kills"), 4
    for number in range(1, times + 1):
        run_and_signal(scene.data, out, signal.SIGKILL, number / (times + 1) * scene.seconds)
    scene.continued(out)
    return f"killed {times} times in a row, continued to the same bits"


def signals_to_stop(scene: Scene) -> str:
    """SIGTERM, SIGUSR1 and Ctrl-C in stage one and in stage two: save, leave within 20 s, continue."""
    slowest, done = 0.0, 0
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        for stage in runs.STAGES[: 1 if scene.short else 2]:
            out = scene.out(f"stop-{number.name}-{stage}")
            started = time.perf_counter()
            process = runs.start(scene.data, out)
            runs.wait_for(out / stage / "last.ckpt", process)
            told = time.perf_counter()
            runs.kill(process, number)
            ended = runs.finish(process, out, started)
            slowest = max(slowest, time.perf_counter() - told)
            assert ended.code == 128 + number, f"{number.name}: exit code {ended.code}: {ended.printed}"
            assert f"stopped by {number.name} at step" in ended.printed, ended.printed
            scene.continued(out)
            done += 1
    assert slowest < LEAVE_WITHIN, f"took {slowest:.1f} s to leave"
    return f"{done} of {done} saved and left, the slowest in {slowest:.1f} s, continued to the same bits"


def kill_while_a_checkpoint_is_written(scene: Scene) -> str:
    """The process dies when half of the third checkpoint's bytes are on the disk."""
    out = scene.out("half-written")
    ended = run(scene.data, out, prepare=partial(die_in_save, 3))
    assert ended.code == -signal.SIGKILL, ended.printed
    scene.continued(out)
    left = [path.name for path in out.rglob("*.tmp")]
    assert not left, f"left behind: {left}"
    return "the checkpoint before it served, continued to the same bits, nothing left behind"


def full_disk(scene: Scene) -> str:
    """No file may grow beyond what half a checkpoint takes (a quota), from the second checkpoint on."""
    out = scene.out("full")
    ended = run(scene.data, out, prepare=partial(limit_files_after, 1))
    assert ended.code == 2, f"exit code {ended.code}: {ended.printed}"
    sentence = ended.printed.strip().splitlines()[-1]
    assert sentence.startswith("dasnet: "), sentence
    assert "last.ckpt" in sentence, sentence
    assert "bytes are needed" in sentence, sentence
    assert (out / "detector" / "last.ckpt").is_file()
    scene.continued(out)
    return "one sentence that says how much room is missing, the checkpoint before it kept, continued to the same bits"


def truncated_checkpoint(scene: Scene) -> str:
    """Half of last.ckpt is gone when the run is continued."""

    def halve(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    return damaged(scene, "truncated", halve)


def flipped_byte(scene: Scene) -> str:
    """One byte in the middle of last.ckpt is another one."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return damaged(scene, "flipped", flip)


def malicious_checkpoint(scene: Scene) -> str:
    """last.ckpt is a pickle that would make a file when it is read."""
    trap = scene.folder / "trap"

    def poison(path: Path) -> None:
        torch.save({"state_dict": {}, "hyper_parameters": Trap(str(trap))}, path)

    said = damaged(scene, "malicious", poison)
    assert not trap.exists(), "the code in the checkpoint ran"
    return f"refused, nothing ran; {said}"


def corrupted_photograph(scene: Scene) -> str:
    """A photograph is cut short in the middle of an epoch; it is put back afterwards."""
    out, data = scene.out("photograph"), scene.folder / "photographs"
    shutil.copytree(scene.data, data, dirs_exist_ok=True)
    picture = sorted(
        path for path in data.rglob("*") if path.suffix in (".jpg", ".png") and "mask" not in path.parts[-2]
    )[3]
    whole = picture.read_bytes()
    started = time.perf_counter()
    process = runs.start(data, out)
    runs.wait_for(out / "detector" / "last.ckpt", process)
    picture.write_bytes(whole[: len(whole) // 2])
    ended = runs.finish(process, out, started)
    assert ended.code == 2, f"exit code {ended.code}: {ended.printed}"
    sentence = ended.printed.strip().splitlines()[-1]
    assert picture.name in sentence, sentence
    picture.write_bytes(whole)
    again = run(data, out)
    assert again.code == 0, again.printed
    runs.expect_same(out, scene.reference)
    return "one sentence that names it, continued to the same bits once it was mended"


def killed_loader_process(scene: Scene) -> str:
    """SIGKILL to the process that loads the images, as the system does when memory runs out."""
    out = scene.out("loader")
    started = time.perf_counter()
    process = runs.start(scene.data, out, options=["--num-workers", "1"])
    runs.wait_for(out / "detector" / "last.ckpt", process)
    for child in children(process.pid or 0):
        os.kill(child, signal.SIGKILL)
    ended = runs.finish(process, out, started)
    assert ended.code == 2, f"exit code {ended.code}: {ended.printed}"
    sentence = ended.printed.strip().splitlines()[-1]
    assert "loader process ended" in sentence, sentence
    scene.continued(out)
    return "one sentence, continued to the same bits"


def memory_over_epochs(scene: Scene) -> str:
    """The memory of a longer run (100 epochs of stage one), looked at all the time."""
    out, seen = scene.out("long"), []
    started = time.perf_counter()
    process = runs.start(scene.data, out, options=["--detector-steps", "600", "--num-workers", "0"])
    while process.is_alive() and not (out / "detector" / "final.ckpt").exists():
        seen.append(resident_bytes(process.pid or 0))
        time.sleep(0.05)
    ended = runs.finish(process, out, started)
    assert ended.code == 0, ended.printed
    half = [
        sorted(part)[len(part) // 2] / 1e6
        for part in (seen[len(seen) // 3 : 2 * len(seen) // 3], seen[-len(seen) // 5 :])
    ]
    assert half[1] < half[0] + MAY_GROW, f"grew from {half[0]:.0f} to {half[1]:.0f} MB"
    return f"{half[0]:.0f} MB in the middle, {half[1]:.0f} MB at the end"


def elastic(scene: Scene) -> str:
    """Two processes under torchrun; one is killed in the middle, torchrun starts both again."""
    whole, out = scene.out("two-processes"), scene.out("elastic")
    code, printed = torchrun(scene, whole, lambda started: None)
    assert code == 0, printed
    code, printed = torchrun(scene, out, lambda started: kill_one_rank(out, started))
    assert code == 0, printed
    assert "continues from" in printed, printed
    expect_same(out, whole)
    return "torchrun started both again, they continued to the bits of two processes that nothing happened to"


def torchrun(scene: Scene, out: Path, disturb: Callable[["subprocess.Popen[bytes]"], None]) -> tuple[int, str]:
    """A run of two processes; its exit code and what it printed."""
    command = [
        *(
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "--max-restarts",
            "1",
        ),
        *("-m", "dasnet_lightning.cli.main", "train", str(scene.data), "--out", str(out), *runs.OPTIONS),
        *("--devices", "2", "--strategy", "ddp"),
    ]
    log = out.with_name(f"{out.name}.log")
    with log.open("w") as file:
        started = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            disturb(started)
            code = started.wait(runs.LIMIT)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
    return code, log.read_text()


def kill_one_rank(out: Path, started: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to the last process that torchrun has started, once there is a checkpoint."""
    until = time.perf_counter() + runs.LIMIT
    while not (out / "detector" / "last.ckpt").exists():
        assert started.poll() is None, "torchrun ended before it was touched"
        assert time.perf_counter() < until, "torchrun never wrote a checkpoint"
        time.sleep(0.05)
    os.kill(children(started.pid)[-1], signal.SIGKILL)


def damaged(scene: Scene, name: str, damage: Callable[[Path], None]) -> str:
    """Stop a run in stage one, damage its newest checkpoint, continue it."""
    out = scene.out(name)
    ended = run(scene.data, out, prepare=partial(die_in_save, 5))
    assert ended.code == -signal.SIGKILL, ended.printed
    last = out / "detector" / "last.ckpt"
    damage(last)
    ended = scene.continued(out)
    line = [line for line in ended.printed.splitlines() if "last.ckpt" in line]
    assert line, MISSING_LINE.format("last.ckpt") + f":\n{ended.printed}"
    return "said so, went on from the checkpoint before it to the same bits"


def die_in_save(number: int) -> None:
    """Make this process die by SIGKILL when half of its `number`-th checkpoint is on the disk."""
    save, count = torch.save, [0]

    def half(content: object, file: IO[bytes], *args: object, **options: object) -> None:
        count[0] += 1
        if count[0] < number:
            save(content, file, *args, **options)  # type: ignore[arg-type]
            return
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half  # type: ignore[assignment]


def limit_files_after(number: int) -> None:
    """Let no file of this process grow beyond half a checkpoint once `number` checkpoints are written."""
    save, count = torch.save, [0]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails as it does on a full disk

    def limited(content: object, file: IO[bytes], *args: object, **options: object) -> None:
        count[0] += 1
        if count[0] > number:
            whole = io.BytesIO()
            save(content, whole)
            half = len(whole.getvalue()) // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, resource.RLIM_INFINITY))
        save(content, file, *args, **options)  # type: ignore[arg-type]

    torch.save = limited  # type: ignore[assignment]


def resident_bytes(pid: int) -> int:
    """The memory that a process holds."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """The processes that a process has started, oldest first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


SCENARIOS: dict[str, Scenario] = {
    "SIGKILL at random moments": sigkill_at_random_moments,
    "SIGKILL again and again": sigkill_again_and_again,
    "SIGTERM, SIGUSR1, Ctrl-C": signals_to_stop,
    "killed while a checkpoint is written": kill_while_a_checkpoint_is_written,
    "full disk": full_disk,
    "truncated checkpoint": truncated_checkpoint,
    "flipped byte in a checkpoint": flipped_byte,
    "malicious pickle as a checkpoint": malicious_checkpoint,
    "photograph cut short in an epoch": corrupted_photograph,
    "killed loader process": killed_loader_process,
    "memory over 100 epochs": memory_over_epochs,
    "one of two ranks killed, torchrun": elastic,
}

LONG = ("SIGKILL again and again", "memory over 100 epochs")  # not in the short form
