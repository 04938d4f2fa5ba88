"""Checkpoints that survive crashes, full disks and flipped bytes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import CheckpointIO

from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.storage.file_kinds import describe_content
from dasnet_lightning.storage.reading import SEALED, find_damage, read_tensors
from dasnet_lightning.storage.writing import previous_of, write_tensors


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside its place, sealed with a checksum, and renames it once it is on the disk; what the name
    held before is kept as `NAME.previous.ckpt`. Reads checkpoints as data, verified.

    A file that this process did not write becomes the previous one only if it is whole: a damaged one must not push the
    last good one out.
    """

    def __init__(self) -> None:
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path).absolute()
        good = path in self._written or (path.is_file() and find_damage(path) is None)
        write_tensors({**checkpoint, SEALED: True}, path, keep=good)
        self._written.add(path)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # always on the processor and as data: Lightning moves tensors itself, and its other choice would run code
        content = read_tensors(path)
        if not isinstance(content, Mapping) or not {"state_dict", "pytorch-lightning_version"} <= set(content):
            raise CheckpointError(f"{path}: not a checkpoint of a training, {describe_content(content)}")
        return dict(content)

    def remove_checkpoint(self, path: str | Path) -> None:
        for file in (Path(path), previous_of(Path(path))):
            file.unlink(missing_ok=True)
