"""Checkpoint plugin whose files survive crashes, full disks and flipped bytes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import CheckpointIO

from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.storage.file_kinds import describe_content
from dasnet_lightning.storage.reading import SEALED, find_damage, read_tensors
from dasnet_lightning.storage.writing import previous_of, write_tensors


class AtomicCheckpointIO(CheckpointIO):
    """Plugin that writes checkpoints atomically with a checksum, keeps the previous one, and verifies them on reading.

    A checkpoint is written to a temporary file, which is renamed when it is complete. The file that had the name before
    becomes `NAME.previous.ckpt`. If another process wrote that file, it is verified first, so that a damaged file never
    replaces the last good one.
    """

    def __init__(self) -> None:
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint and keep the previous one."""
        path = Path(path).absolute()
        keep_previous = path in self._written or (path.is_file() and find_damage(path) is None)
        write_tensors({**checkpoint, SEALED: True}, path, keep=keep_previous)
        self._written.add(path)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint. Raises CheckpointError if it is damaged, of another kind, or would run code.

        `map_location` and `weights_only` are ignored: tensors stay on the CPU, from where Lightning moves them, and
        pickled code is always refused.
        """
        content = read_tensors(path)
        if not isinstance(content, Mapping) or not {"state_dict", "pytorch-lightning_version"} <= set(content):
            raise CheckpointError(f"{path}: not a checkpoint of a training, {describe_content(content)}")
        return dict(content)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint and the previous one."""
        for file in (Path(path), previous_of(Path(path))):
            file.unlink(missing_ok=True)
