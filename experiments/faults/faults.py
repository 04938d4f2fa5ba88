"""Provokes the faults that long trainings meet, and checks that nothing is lost: `python experiments/faults/faults.py`.

A short two-stage run (`dasnet train`, 24 and 16 steps on made-up pictures) is killed, stopped, robbed of disk and data,
and continued; it must end with the bits of a run that nothing happened to. Prints a table; ends with 1 where a
scenario failed.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from scenarios import LONG, SCENARIOS, Scene

from dasnet_lightning.data.synthetic.dataset import write_synthetic


def play(scene: Scene, name: str) -> dict[str, object]:
    """One line of the table."""
    started = time.perf_counter()
    try:
        outcome, held = SCENARIOS[name](scene), True
    except Exception as error:
        traceback.print_exc()
        outcome, held = f"FAILED: {error}", False
    return {"fault": name, "held": held, "outcome": outcome, "seconds": round(time.perf_counter() - started, 1)}


def main() -> int:
    """Play the scenarios one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--kills", type=int, default=20, help="random moments of SIGKILL (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="each fault once or a few times, without the long ones")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, help="write faults.json and faults.md there")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        scene = Scene(write_synthetic(folder / "data", 24, 6, size=64), folder, args.kills, args.seed, args.short)
        lines = []
        for name in [name for name in args.only if not (args.short and name in LONG)]:
            lines.append(play(scene, name))
            print(json.dumps(lines[-1]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = "| fault | outcome | seconds |\n|---|---|---:|\n"
    table += "".join(f"| {line['fault']} | {line['outcome']} | {line['seconds']} |\n" for line in lines)
    print(table)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "faults.json").write_text(json.dumps(lines, indent=1) + "\n")
        (args.out / "faults.md").write_text(table)
    return 0 if all(line["held"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
