"""`dasnet sweep DATA`: the learning curve over mask budgets; `dasnet sweep FILE.yaml`: a W&B sweep file run here."""

import argparse
import shlex
import sys
from dataclasses import fields

from dasnet_lightning.cli.options import add_field_arguments, field_values
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.sweeps.cost import BOX_SECONDS, MASK_SECONDS, CostModel
from dasnet_lightning.training.config import RunConfig, TrainerSettings

LEFT_OUT = ("out", "mask_budgets", "split_seed", "joint_steps")
RUN_OPTIONS = [item.name for item in fields(RunConfig) if item.name not in LEFT_OUT]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a sweep, and those of its trainings."""
    parser.add_argument(
        "data", metavar="DATA", help="data set in any supported format, or a sweep file of W&B (method, parameters)"
    )
    parser.add_argument(
        "--budgets",
        nargs="+",
        metavar="N",
        help="mask budgets (default: 1/class 2/class 5/class 10/class 25/class all)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds of each budget (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", help="folder of the sweep (default: runs/DATA-sweep)")
    parser.add_argument(
        "--box-cost", type=float, default=BOX_SECONDS, metavar="X", help="cost of drawing a box (default: %(default)s)"
    )
    parser.add_argument(
        "--mask-cost", type=float, default=MASK_SECONDS, metavar="X", help="cost of a mask (default: %(default)s)"
    )
    parser.add_argument("--cost-unit", default="s", metavar="NAME", help="unit of the costs (default: seconds)")
    parser.add_argument("--rivals", metavar="CSV", help="results of the few-mask benchmark, for the mask multiplier")
    parser.add_argument(
        "--backend",
        choices=("local", "wandb"),
        default="local",
        help="of a sweep file: wandb registers it at the server, for `wandb agent` (default: %(default)s)",
    )
    add_field_arguments(parser, RunConfig, RUN_OPTIONS)
    add_field_arguments(parser, TrainerSettings)


def run(args: argparse.Namespace) -> int:
    """Run what is not finished, and write the table and the page."""
    from dasnet_lightning.sweeps.file import is_sweep_file, register, run_file

    if is_sweep_file(args.data):
        return register(args.data, args.project) if args.backend == "wandb" else run_file(args.data, args.out)
    if args.backend == "wandb":
        raise ConfigError(f"{args.data}: --backend wandb needs a sweep file (YAML with method and parameters)")
    from dasnet_lightning.sweeps.run import BUDGETS, run_sweep

    options = field_values(args, RunConfig, RUN_OPTIONS) | field_values(args, TrainerSettings)
    cost = CostModel(args.box_cost, args.mask_cost, args.cost_unit)
    command = shlex.join(["dasnet", *sys.argv[1:]])
    run_sweep(args.data, args.budgets or BUDGETS, args.seeds, args.out, cost, args.rivals, options, command)
    return 0
