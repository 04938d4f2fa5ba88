"""The program `dasnet`, which imports only the module of the command that runs.

The module of a command has `add_arguments(parser)` and `run(args) -> int`, and imports torch only inside `run`. LightningCLI
parses the arguments of `fit`, `validate` and `test --config` itself. The exit code is 0 on success, 2 for an error that the
user can fix, and 130 after Ctrl-C.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from dasnet_lightning import __version__
from dasnet_lightning.errors import DasnetError, Stopped


class Command(NamedTuple):
    """A command: its module in this package, and its line in the overview."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "demo": Command("demo", "the whole method in minutes on synthetic images, with a report page"),
    "train": Command("train", "train both stages on your data set, evaluate, write a report"),
    "sweep": Command("sweep", "the learning curve over mask budgets: how many masks are worth drawing"),
    "segment": Command("segment", "segment images with a trained checkpoint: COCO JSON and, with --draw, pictures"),
    "data": Command("data", "check a data set: every label that is used or refused, and why"),
    "convert": Command("convert", "write a data set in another format: COCO, VOC, YOLO, labelme or CVAT"),
    "annotate": Command("annotate", "boxes in, the same data set with masks and their quality out"),
    "export": Command("export", "export a checkpoint to ONNX or torch.export with a runner, or to a model folder"),
    "fit": Command("fit", "train one stage from a YAML file (LightningCLI)"),
    "validate": Command("fit", "validate one stage from a YAML file (LightningCLI)"),
    "test": Command("test", "measure a checkpoint on a test split or another data set"),
}
_HANDED_OVER = ("fit", "validate", "test")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; `argv` excludes the program's name and defaults to `sys.argv`."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else albumentations looks for updates online at import
    given = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in given
    arguments = [argument for argument in given if argument != "--debug"]
    try:
        return _dispatch(arguments)
    except Stopped as stopped:
        print(f"dasnet: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except DasnetError as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"dasnet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dasnet: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(), flush=True)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"dasnet {__version__}")
        return 0
    name, rest = arguments[0], list(arguments[1:])
    if name not in COMMANDS:
        print(_unknown(name), file=sys.stderr)
        return 2
    module = import_module(f"dasnet_lightning.cli.{COMMANDS[name].module}")
    if name in _HANDED_OVER:
        return int(module.run_cli(name, rest))
    parser = argparse.ArgumentParser(f"dasnet {name}", description=COMMANDS[name].help, allow_abbrev=False)
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    try:
        args = parser.parse_args([_hyphenate(argument) for argument in rest])
    except SystemExit as stop:  # argparse has printed its help or its error
        return int(stop.code or 0)
    return int(module.run(args))


def _hyphenate(argument: str) -> str:
    """Turn --mask_budget=5 into --mask-budget=5: sweep programs write the names of parameters with underscores."""
    option, equals, value = argument.partition("=")
    return option.replace("_", "-") + equals + value if option.startswith("--") else argument


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name.ljust(width)}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dasnet COMMAND [OPTIONS]",
            "",
            "Masks from boxes on every image and pixel masks on a few.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  --help     this text; after a command, its options",
            "  --version  the version",
            "  --debug    show the traceback of an error",
        ]
    )


def _unknown(name: str) -> str:
    if name.startswith("-"):
        return f"dasnet: '{name}' is not an option; start with a command: {', '.join(COMMANDS)}"
    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean '{near[0]}'? Known" if near else "known"
    return f"dasnet: '{name}' is not a command, {hint}: {', '.join(COMMANDS)}"


if __name__ == "__main__":
    sys.exit(main())
