"""Texts in a temporary file instead of in memory, and JSON files that are written piece by piece."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


class TextSpool:
    """Texts in a temporary file; memory holds a number for each."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`, or with the object)
        self._ends = [0]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, text: str) -> int:
        """Append a text and return its number."""
        self._file.seek(0, os.SEEK_END)
        self._ends.append(self._ends[-1] + self._file.write(text.encode("utf-8")))
        return len(self) - 1

    def get(self, number: int) -> str:
        """Return a text by its number."""
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number]).decode("utf-8")

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


def write_json_parts(content: Mapping[str, Any], key: str, rows: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a JSON object on one line, with the list at `key` made of rows that are JSON texts."""
    yield "{"
    for number, (name, value) in enumerate(content.items()):
        yield f"{', ' if number else ''}{json.dumps(name, ensure_ascii=False)}: "
        if name != key:
            yield json.dumps(value, ensure_ascii=False)
            continue
        yield "["
        for place, row in enumerate(rows):
            yield f", {row}" if place else row
        yield "]"
    yield "}\n"


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """Write pieces of text to a file; it gets its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.writelines(parts)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
