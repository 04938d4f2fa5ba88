"""`dasnet demo`: the whole story in minutes, on made-up pictures: boxes on all, masks on a few, a report page."""

import argparse
import sys
from pathlib import Path

from dasnet_lightning.cli.train import add_task_argument
from dasnet_lightning.training.hardware import default_precision, default_workers, quiet_lightning, set_thread_counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything has a default that finishes within minutes on two processors."""
    parser.add_argument("--out", default="dasnet_demo", help="folder for data, checkpoints and report")
    add_task_argument(parser)
    parser.add_argument("--images", type=int, default=2000, help="training pictures to make (default: %(default)s)")
    parser.add_argument("--mask-budget", nargs="+", default=["5/class", "all"], metavar="N")
    parser.add_argument("--detector-steps", type=int, default=900)
    parser.add_argument("--steps", type=int, default=250, help="of stage two, for each budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=None)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--precision", default=None)


def run(args: argparse.Namespace) -> int:
    """Write the data, run both stages for both budgets, print the table, write the page."""
    quiet_lightning()
    workers = default_workers() if args.num_workers is None else args.num_workers
    set_thread_counts(workers)
    from dasnet_lightning import console
    from dasnet_lightning.console import counter
    from dasnet_lightning.data.synthetic.dataset import write_synthetic
    from dasnet_lightning.training.config import RunConfig
    from dasnet_lightning.training.report import finish
    from dasnet_lightning.training.run import execute
    from dasnet_lightning.training.stage import TrainerSettings

    out = Path(args.out)
    console.out(
        f"demo: {args.images} made-up pictures with boxes; masks on {' and on '.join(args.mask_budget)}; in {out}"
    )
    num_val = max(20, args.images // 10)
    with counter("drawing pictures") as tick:
        data = write_synthetic(out / "data", args.images, num_val, seed=args.seed, progress=tick)
    config = RunConfig(
        data=str(data),
        out=str(out),
        task=args.task,
        mask_budgets=tuple(args.mask_budget),
        detector="ssd_tiny",
        detector_steps=args.detector_steps,
        steps=args.steps,
        detector_batch_size=16,
        batch_size=16,
        detector_augmentation="flip",
        detector_lr=4e-3,
        lr=2e-3,
        seed=args.seed,
        num_workers=workers,
        trainer=TrainerSettings(args.accelerator, precision=args.precision or default_precision(args.accelerator)),
    )
    finish(config, execute(config), "dasnet demo", ["dasnet", *sys.argv[1:]])
    return 0
