"""What commands print: results on stdout, progress and errors on stderr."""

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
    """Print a line of results on stdout at once, also into a pipe."""
    print(text, flush=True)


def info(text: str) -> None:
    """Print a line on stderr, on rank zero alone."""
    if is_rank_zero():
        error(text)


def error(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_table(table: Table) -> None:
    """Print a table with a blank line after it."""
    out(format_text_table(table) + "\n")


def print_list(title: str, lines: Sequence[str], most: int = 20, rest: str = "") -> None:
    """Print a title with the number of lines and the first of them; `rest` says where the others are. Nothing for none."""
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
    """A progress bar that is told (done, total); without a terminal one line is printed every half minute."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=description, leave=False, file=sys.stderr, dynamic_ncols=True) as bar:

            def move(done: int, total: int | None) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield move
        return
    last = time.monotonic()

    def write(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            error(f"{description}: {done:,}" + ("" if total is None else f" of {total:,}"))

    yield write


def progress(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Pass the items on under a progress bar; `total` is needed only where the iterable does not know its length."""
    size = len(iterable) if total is None and isinstance(iterable, Sized) else total
    with counter(description) as move:
        for done, item in enumerate(iterable, start=1):
            yield item
            move(done, size)
