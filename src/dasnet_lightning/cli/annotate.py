"""`dasnet annotate`: boxes in, the same data set with masks and their quality out."""

import argparse
from pathlib import Path
from typing import Any

from dasnet_lightning.cli.json_output import add_json_argument, json_document
from dasnet_lightning.cli.options import add_field_arguments, field_values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from dasnet_lightning.annotation.options import AnnotateOptions

    about = "folder of a data set, a label file, or a YAML list of several"
    parser.add_argument("data", metavar="DATA", type=Path, help=about)
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, required=True, help="a checkpoint of stage two")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="a new or empty folder, or one to continue"
    )
    add_field_arguments(parser, AnnotateOptions)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Annotate the data set; return 2 if some images could not be read."""
    with json_document(args.json) as document:
        return _run(args, document)


def _run(args: argparse.Namespace, document: dict[str, Any]) -> int:
    from dataclasses import asdict

    from dasnet_lightning import console
    from dasnet_lightning.annotation.agreement import COLUMNS
    from dasnet_lightning.annotation.options import AnnotateOptions
    from dasnet_lightning.annotation.run import annotate
    from dasnet_lightning.report import Table

    with console.counter("annotate") as move:
        result = annotate(
            args.data,
            args.checkpoint,
            args.out,
            progress=lambda step, done, total: move(done, total) if step == "segment" else None,
            **field_values(args, AnnotateOptions),
        )
    document |= asdict(result)
    for note in result.notes:
        console.info(f"dasnet: {note}")
    counts = ", ".join(f"{count:,} {name}" for name, count in result.kept_as.items())
    rate = f", {result.segmented / result.seconds:.2f} images/s" if result.segmented else ""
    console.out(f"{result.images:,} images, {result.objects:,} objects ({counts}){rate}: {result.out}")
    if result.agreement:
        console.print_table(
            Table("Agreement with the masks of people", COLUMNS, [list(row) for row in result.agreement])
        )
    console.print_list(
        f"Not the same in {result.format.upper()}", [f"{count:,} {text}" for text, count in result.losses.items()]
    )
    for failure in result.failures:
        console.error(f"dasnet: {failure}")
    return 2 if result.failures else 0
