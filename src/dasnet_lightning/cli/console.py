"""What commands print: results on stdout, progress and complaints on stderr."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from dasnet_lightning.report import Table, format_text_table

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 30.0


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_table(table: Table) -> None:
    """Print a table with a blank line after it."""
    say(format_text_table(table) + "\n")


def progress(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Pass the items on under a progress bar; without a terminal one line is printed every half minute."""
    size = len(iterable) if total is None and isinstance(iterable, Sized) else total
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, desc=description, total=size, leave=False, file=sys.stderr, dynamic_ncols=True)
        return
    last = time.monotonic()
    for done, item in enumerate(iterable, start=1):
        yield item
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            complain(f"{description}: {done}" + ("" if size is None else f" of {size}"))
