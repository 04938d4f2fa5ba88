"""Reads W&B's local files: what a run logged, online or offline, without a server.

A `.wandb` file holds protobuf records in the framing of LevelDB's log: blocks of 32 KiB, and a record that does not fit goes
on in the next block. W&B writes the last records when a run finishes, so the file of a killed run ends early.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dasnet_lightning.errors import DataError

MAGIC = b":W&B" + struct.pack("<H", 0xBEE1)
BLOCK = 32768
HEADER = struct.Struct("<IHB")  # CRC32 of type and content, length, type
FULL, LAST = 1, 4


@dataclass
class RunFile:
    """What one `.wandb` file holds.

    Attributes:
        run_id: the run that it belongs to; several files may hold parts of one run.
        sweep_id: the sweep of the run, empty without one.
        config: the configuration.
        rows: the logged rows, in order, each with W&B's `_step`.
        artifacts: the logged artifacts, each with `name`, `type` and `aliases`.
        axes: the step metric by name or pattern of metrics.
    """

    run_id: str = ""
    sweep_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)


def find_run_files(folder: Path, run_id: str = "*") -> list[Path]:
    """Return the `.wandb` files below a run folder in the order in which they were started."""
    paths = folder.glob(f"**/*run-*-{run_id}/run-{run_id}.wandb")
    return sorted(path for path in paths if path.parent.name != "latest-run")


def read_run_file(path: Path) -> RunFile:
    """Read one `.wandb` file up to its end or to its first damaged record.

    Raises:
        DataError: the file was not written by W&B.
    """
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2
    found = RunFile()
    for content in read_records(path):
        record = messages.Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run_id, found.sweep_id = record.run.run_id, record.run.sweep_id
            found.config |= _read_items(record.run.config.update)
        elif kind == "config":
            found.config |= _read_items(record.config.update)
        elif kind == "history":
            found.rows.append(_read_items(record.history.item))
        elif kind == "metric" and record.metric.step_metric:
            found.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "artifact":
            artifact = record.artifact
            found.artifacts.append({"name": artifact.name, "type": artifact.type, "aliases": list(artifact.aliases)})
    found.config.pop("_wandb", None)
    return found


def join_run_files(files: Iterable[RunFile]) -> dict[str, RunFile]:
    """Join the files of each run, given in the order in which they were started."""
    runs: dict[str, RunFile] = {}
    for part in files:
        whole = runs.setdefault(part.run_id, RunFile(part.run_id, part.sweep_id))
        whole.config |= part.config
        whole.rows += part.rows
        whole.artifacts += part.artifacts
        whole.axes |= part.axes
    return runs


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file, up to its end or to the first that is damaged or incomplete.

    Raises:
        DataError: the file was not written by W&B.
    """
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise DataError(f"{path}: starts with {content[:4]!r}, expected a .wandb file")
    offset, parts = len(MAGIC) + 1, b""  # a byte for the version
    while True:
        left = BLOCK - offset % BLOCK
        if left < HEADER.size:
            offset += left  # the rest of the block is padding
        if offset + HEADER.size > len(content):
            return
        checksum, length, kind = HEADER.unpack_from(content, offset)
        start = offset + HEADER.size
        data = content[start : start + length]
        if len(data) < length or zlib.crc32(bytes([kind]) + data) != checksum:
            return
        parts, offset = parts + data, start + length
        if kind in (FULL, LAST):
            yield parts
            parts = b""


def _read_items(items: Iterable[Any]) -> dict[str, Any]:
    """Return W&B's items as a dictionary; an item with several keys is nested."""
    values: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inner = values
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return values


def last_values(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the last value of each key of some rows, as W&B's summary does."""
    return {key: value for row in rows for key, value in row.items()}
