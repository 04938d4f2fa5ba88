"""`dasnet demo`: the whole method in minutes on synthetic images: boxes on all, masks on a few, a report page."""

import argparse
import sys
from pathlib import Path

from dasnet_lightning.cli.options import add_field_arguments, field_values
from dasnet_lightning.training.config import RunConfig, TrainerSettings
from dasnet_lightning.training.options import build_config

RUN_OPTIONS = ("task", "mask_budgets", "detector_steps", "steps", "seed", "num_workers")
TRAINER_OPTIONS = ("accelerator", "precision")
RECIPE = {
    "detector": "ssd_tiny",
    "detector_batch_size": 8,
    "batch_size": 16,
    "detector_augmentation": "d4",  # the shapes are drawn in all directions
    "detector_lr": 1e-2,
    "held_out": 0.0,  # the published figures train all boxes
    "lr": 2e-3,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; the defaults finish within minutes on two processors."""
    parser.add_argument("--out", default="dasnet_demo", help="folder for data, checkpoints and report")
    parser.add_argument("--images", type=int, default=2000, help="training images to render (default: %(default)s)")
    add_field_arguments(parser, RunConfig, RUN_OPTIONS)
    add_field_arguments(parser, TrainerSettings, TRAINER_OPTIONS)
    parser.set_defaults(mask_budgets=["5/class", "all"], detector_steps=1600, steps=250)


def run(args: argparse.Namespace) -> int:
    """Render the data, run both stages for each budget, and write the report."""
    from dasnet_lightning import console
    from dasnet_lightning.data.synthetic.dataset import write_synthetic
    from dasnet_lightning.training.run import run_and_report

    options = field_values(args, RunConfig, RUN_OPTIONS) | field_values(args, TrainerSettings, TRAINER_OPTIONS)
    out, num_val = Path(args.out), max(20, args.images // 10)
    budgets = " and on ".join(args.mask_budgets)
    console.out(f"demo: {args.images} synthetic images with boxes; masks on {budgets}; in {out}")
    with console.counter("rendering images") as tick:
        data = write_synthetic(out / "data", args.images, num_val, seed=args.seed, progress=tick)
    config = build_config(data, out, RECIPE | options, "dasnet demo")
    run_and_report(config, "dasnet demo", ["dasnet", *sys.argv[1:]])
    return 0
