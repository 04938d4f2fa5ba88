"""`dasnet train DATA`: both stages on a data set, evaluation and report; continues an interrupted run."""

import argparse
import sys

from dasnet_lightning.cli.json_output import add_json_argument, json_document
from dasnet_lightning.cli.options import add_field_arguments, field_values
from dasnet_lightning.training.config import RunConfig, TrainerSettings, build_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run."""
    about = "VOC, COCO or SBD data set: a folder, a COCO file, or a YAML list of several"
    parser.add_argument("data", metavar="DATA", help=about)
    add_field_arguments(parser, RunConfig)
    add_field_arguments(parser, TrainerSettings)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, and write the report."""
    options = field_values(args, RunConfig) | field_values(args, TrainerSettings)
    config = build_config(args.data, options.pop("out"), options, "dasnet train")
    with json_document(args.json) as document:
        from dasnet_lightning.training.run import run_and_report

        result = run_and_report(config, "Masks from boxes and a few masks", ["dasnet", *sys.argv[1:]])
        document |= result.as_dict() | {"folder": result.folder, "report": result.folder / "report.html"}
    return 0
