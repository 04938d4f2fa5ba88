"""`dasnet convert`: write a data set in another format and report what that format cannot hold."""

import argparse
from pathlib import Path

FORMATS = ("coco", "voc", "yolo", "labelme", "cvat")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    about = "folder of a data set, a COCO file, or a YAML list of several"
    parser.add_argument("data", metavar="DATA", type=Path, help=about)
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format to write")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="a folder that is empty or does not exist"
    )
    parser.add_argument(
        "--images",
        choices=("copy", "link"),
        default="copy",
        help="copy the image files, or hard-link them if both folders are on one file system (default: copy)",
    )
    parser.add_argument("--fix", choices=["drop"], help="leave out labels that cannot be used")
    parser.add_argument("--allow-missing", action="store_true", help="leave out images whose file is missing")


def run(args: argparse.Namespace) -> int:
    """Convert the data set; print what was written and what was lost."""
    from dasnet_lightning import console
    from dasnet_lightning.data.sources.open import open_dataset
    from dasnet_lightning.data.writers.convert import check_out, convert_dataset

    check_out(args.out)
    data = open_dataset(args.data, allow_missing=args.allow_missing, fix=args.fix or "error", model_masks="keep")
    with console.counter("convert") as move:
        result = convert_dataset(data, args.to, args.out, args.images, progress=move)
    images = ", ".join(f"{count:,} {split} images" for split, count in result.images.items())
    console.out(
        f"{images}, {result.objects:,} objects, {result.masks:,} of them with a mask: {args.out} ({args.to.upper()})"
    )
    lost = [str(problem) for problem in (*data.train.problems, *data.val.problems) if problem.action == "refused"]
    console.print_list("Left out", list(dict.fromkeys(lost)))
    console.print_list(
        f"Not the same in {args.to.upper()}", [f"{count:,} {text}" for text, count in result.losses.items()]
    )
    return 0
