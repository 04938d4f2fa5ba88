"""`dasnet export CHECKPOINT --out DIR`: graphs for other runtimes, or a model folder."""

import argparse
from functools import partial
from pathlib import Path

from dasnet_lightning.cli.options import parse_options
from dasnet_lightning.options import replace_options

FOLDER = "folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint of stage two, or a model folder")
    parser.add_argument(
        "--to",
        choices=["onnx", "torch-export", FOLDER],
        default="onnx",
        help="two graphs with a runner, or a folder of safetensors that load reads (default: onnx)",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--inference-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a field of the checkpoint's SemanticOptions or InstanceOptions; repeatable",
    )


def run(args: argparse.Namespace) -> int:
    """Export the checkpoint."""
    from dasnet_lightning import console
    from dasnet_lightning.inference.export.write import export
    from dasnet_lightning.inference.segmenter import load

    segmenter = load(args.checkpoint)
    changes = parse_options(args.inference_option, "--inference-option")
    if changes:
        segmenter.options = replace_options(segmenter.options, changes, "--inference-option")
    write = segmenter.save if args.to == FOLDER else partial(export, segmenter, target=args.to)
    folder = write(args.out)
    console.out(f"exported: {folder} ({', '.join(sorted(path.name for path in folder.iterdir() if path.is_file()))})")
    return 0
