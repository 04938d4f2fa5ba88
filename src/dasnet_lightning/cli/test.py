"""`dasnet test DATA --checkpoint FILE`: measures a checkpoint on a test split or on another data set."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dasnet_lightning.cli.json_output import add_json_argument, json_document

EPILOG = "`dasnet test --config FILE` tests one stage from a YAML file (LightningCLI) and has the options of `dasnet validate`."


def run_cli(name: str, arguments: Sequence[str]) -> int:
    """Evaluate a checkpoint, or hand a command without data set and checkpoint over to LightningCLI."""
    if not is_evaluation(arguments):
        from dasnet_lightning.cli import fit

        return fit.run_cli(name, arguments)
    parser = argparse.ArgumentParser(f"dasnet {name}", description=__doc__, epilog=EPILOG, allow_abbrev=False)
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    try:
        args = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its help or its error
        return int(stop.code or 0)
    return run(args)


def is_evaluation(arguments: Sequence[str]) -> bool:
    """Return whether the arguments of `dasnet test` are those of an evaluation, not those of LightningCLI."""
    names = {argument.partition("=")[0] for argument in arguments}
    if names & {"--config", "-c"}:
        return False
    positional = bool(arguments) and not arguments[0].startswith("-")
    return positional or "--checkpoint" in names or names in ({"-h"}, {"--help"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("data", metavar="DATA", help="data set in any format that `dasnet train` reads")
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, required=True, help="a checkpoint of either stage")
    parser.add_argument(
        "--split",
        choices=["test", "val", "all"],
        help="test, val, or all images of a data set without splits (default: test if there is one, else val)",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="write results.json and labels.csv")
    parser.add_argument("--fix", choices=["drop"], help="drop unusable labels")
    parser.add_argument("--allow-missing", action="store_true", help="skip images whose file does not exist")
    parser.add_argument("--crowd", choices=["ignore", "object"], default="ignore", help="object: as ordinary labels")
    parser.add_argument("--batch-size", type=int, default=8, metavar="B", help="default: %(default)s")
    parser.add_argument("--num-workers", type=int, metavar="N", help="default: half of the processors, at most 8")
    parser.add_argument("--accelerator", default="auto", metavar="NAME", help="cpu, cuda, ... (default: auto)")
    parser.add_argument("--precision", metavar="NAME", help="default: the fastest that the hardware supports")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, and write the files."""
    with json_document(args.json) as document:
        from dasnet_lightning import console
        from dasnet_lightning.training.evaluation import evaluate
        from dasnet_lightning.training.evaluation_tables import print_evaluation

        result = evaluate(
            args.data,
            args.checkpoint,
            args.out,
            split=args.split,
            allow_missing=args.allow_missing,
            fix=args.fix or "error",
            crowd=args.crowd,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            accelerator=args.accelerator,
            precision=args.precision,
        )
        print_evaluation(result)
        if args.out is not None:
            console.out(f"results: {args.out / 'results.json'}")
        document |= result.as_dict() | ({} if args.out is None else {"out": args.out})
    return 0
