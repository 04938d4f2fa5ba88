"""W&B's sweep files, run here without a server, or registered at the server for `wandb agent`."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from dasnet_lightning import console
from dasnet_lightning.console import print_table
from dasnet_lightning.errors import ConfigError, DasnetError
from dasnet_lightning.report import Table, Value
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.storage.claims import claim
from dasnet_lightning.training.wandb_sweep import Point, read_command, read_sweep

DONE, CLAIM = "point.json", "claim.json"
PROGRAM = "dasnet"


def is_sweep_file(path: str) -> bool:
    """Return whether a file is a sweep of W&B, and not a YAML list of data sets."""
    if not path.lower().endswith((".yaml", ".yml")) or not Path(path).is_file():
        return False
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and "parameters" in content and "method" in content


def run_file(path: str, out: str | None = None) -> int:
    """Run each point of a sweep file as its own process; finished points are not run again.

    A point whose command logs to W&B is an offline run in the group of the sweep, unless WANDB_MODE says otherwise.

    Args:
        path: the sweep file, whose command starts with `dasnet train`.
        out: folder of the sweep; None for runs/NAME. Each point has its own folder there.

    Returns:
        The exit code: 0 if every point is finished.

    Raises:
        ConfigError: the file cannot be read, or its command is not `dasnet train`.
    """
    name = Path(path).stem
    folder = Path(out) if out is not None else Path("runs") / name
    points = read_sweep(path)
    failed: list[str] = []
    rows: list[list[Value]] = []
    for number, point in enumerate(points):
        target = folder / f"point-{number:03d}"
        state = _run_point(path, point, target, name, f"point {number + 1} of {len(points)}")
        if state not in ("done before", "done", "running elsewhere"):
            failed.append(f"{target}: {state}")
        rows.append([str(target), *(str(value) for value in point.values()), state])
    print_table(Table(f"Sweep {name}", ["folder", *points[0], "state"], rows))
    if failed:
        raise DasnetError(f"{len(failed)} of {len(points)} points failed, the first: {failed[0]}")
    return 0 if all(row[-1] != "running elsewhere" for row in rows) else 1


def _run_point(path: str, point: Point, folder: Path, group: str, title: str) -> str:
    if (folder / DONE).is_file():
        return "done before"
    words = read_command(path, point)
    if words[:2] != [PROGRAM, "train"]:
        raise ConfigError(f"{path}: the command is '{' '.join(words[:2])} ...', expected '{PROGRAM} train ...'")
    if any(word == "--out" or word.startswith("--out=") for word in words):
        raise ConfigError(f"{path}: the command has --out, but each point needs its own folder; leave it out")
    with claim(folder / CLAIM) as mine:
        if not mine:
            return "running elsewhere"
        console.info(f"sweep {group}: {title}: {', '.join(f'{name}={value}' for name, value in point.items())}")
        environment = {"WANDB_MODE": "offline"} | dict(os.environ) | {"WANDB_RUN_GROUP": group}
        command = [sys.executable, "-m", "dasnet_lightning", *words[1:], "--out", str(folder)]
        code = subprocess.run(command, env=environment, check=False).returncode
        if code in (130, -2):
            raise KeyboardInterrupt
        if code:
            return f"exit code {code}"
        write_json(folder / DONE, {"point": point, "command": words})
    return "done"


def register(path: str, project: str | None) -> int:
    """Register a sweep file at W&B's server, and say how its agents are started.

    Raises:
        ConfigError: W&B refuses the sweep.
    """
    import wandb

    check_program(path)
    try:
        identity = wandb.sweep(yaml.safe_load(Path(path).read_text()), project=project)
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: W&B does not register the sweep ({reason}); log in with `wandb login`") from error
    console.out(f"start agents with: wandb agent {identity}")
    return 0


def check_program(path: str) -> None:
    """Raise ConfigError if the command of a sweep file is not `dasnet`."""
    content = yaml.safe_load(Path(path).read_text())
    program = str(content.get("program", content.get("command", [""])[0]))
    if PROGRAM not in program:
        raise ConfigError(f"{path}: runs '{program}', expected '{PROGRAM}'")
