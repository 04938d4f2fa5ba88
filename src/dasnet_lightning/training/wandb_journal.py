"""The rows that a run sent to W&B, kept in its folder, so that a continuation neither repeats nor loses one.

W&B writes its own files late: a killed process loses the last seconds of an offline run. The journal has each row at once. A
continuation sends the rows again that did not arrive, and skips those that training repeats after its last checkpoint.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from dasnet_lightning.storage.atomic import write_text

Send = Callable[[Mapping[str, Any], int], None]  # sends a row under W&B's step


class Journal:
    """Journal of one W&B run.

    Args:
        path: the file, with a line of JSON for each row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = _read_lines(path)
        self._next = 0
        self._sent: set[tuple[str, str, float]] = set()

    def resume(self, arrived: Callable[[int], bool], send: Send) -> None:
        """Send the rows again that did not arrive.

        Pictures are not kept in the journal: theirs are forgotten, so that they are logged anew.

        Args:
            arrived: whether the row with this step of W&B arrived.
            send: sends a row.
        """
        kept = [line for line in self.lines if arrived(line["step"])]
        lost = [line for line in self.lines if not arrived(line["step"]) and not line["media"]]
        self._next = 1 + max((int(line["step"]) for line in kept), default=-1)
        for line in lost:
            line["step"], self._next = self._next, self._next + 1
        self.lines = kept + lost
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        for line in lost:
            send(line["row"], line["step"])
        self._sent = {
            (line["scope"], name, line["at"]) for line in self.lines for name in [*line["row"], *line["media"]]
        }

    def has(self, scope: str, name: str, at: float) -> bool:
        """Return whether a value was sent."""
        return (scope, name, at) in self._sent

    def send(
        self,
        row: Mapping[str, Any],
        axis: Mapping[str, Any],
        scope: str,
        at: float,
        send: Send,
        media: Collection[str] = (),
    ) -> None:
        """Send the values of a row that were not sent before; nothing if all of them were.

        Args:
            row: the values by name.
            axis: values that are sent with each part of a row, such as its step.
            scope: what `at` counts, such as the steps of a stage.
            at: position of the row; a value of one name is sent once for each position.
            send: sends the row.
            media: names of values that JSON cannot hold.
        """
        new = {name: value for name, value in row.items() if not self.has(scope, name, at)}
        if not new:
            return
        new |= axis
        plain = {name: value for name, value in new.items() if name not in media}
        number = self._next
        line = {"step": number, "scope": scope, "at": at, "row": plain, "media": [*(new.keys() & set(media))]}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._sent |= {(scope, name, at) for name in new}
        self._next += 1
        send(new, number)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal; the last one may be incomplete."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
