"""Console output of the commands: results on stdout, progress and errors on stderr."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

from dasnet_lightning.distributed import is_rank_zero
from dasnet_lightning.report import Table, format_text_table

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 30.0


def out(text: str) -> None:
    """Print a line of results on stdout and flush it, for pipes."""
    print(text, flush=True)


def info(text: str) -> None:
    """Print a line on stderr, on rank 0 only."""
    if is_rank_zero():
        error(text)


def error(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_table(table: Table) -> None:
    """Print a table followed by a blank line."""
    out(format_text_table(table) + "\n")


def print_list(title: str, lines: Sequence[str], most: int = 20, rest: str = "") -> None:
    """Print a title, the number of lines and the first of them; print nothing if there are none.

    Args:
        title: the heading.
        lines: the lines of the list.
        most: how many lines to print at most.
        rest: where to find the remaining lines, for the last line.
    """
    if not lines:
        return
    out(f"{title} ({len(lines):,})")
    for line in lines[:most]:
        out(f"  {line}")
    if len(lines) > most:
        out(f"  ... and {len(lines) - most:,} more{f', {rest}' if rest else ''}")
    out("")


@contextmanager
def counter(description: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function of (done, total) that updates a progress bar, or prints a line every 30 s without a terminal."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=description, leave=False, file=sys.stderr, dynamic_ncols=True) as bar:

            def update_bar(done: int, total: int | None) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield update_bar
        return
    last_printed = time.monotonic()

    def print_line(done: int, total: int | None) -> None:
        nonlocal last_printed
        if time.monotonic() - last_printed >= _SECONDS_BETWEEN_LINES:
            last_printed = time.monotonic()
            error(f"{description}: {done:,}" + ("" if total is None else f" of {total:,}"))

    yield print_line


def progress(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress bar; `total` is needed only if the iterable has no length."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with counter(description) as update:
        for done, item in enumerate(iterable, start=1):
            yield item
            update(done, total)
