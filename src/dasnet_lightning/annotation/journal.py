"""Journal of an annotation: finished parts in `OUT/.annotate`, so that an interrupted annotation continues.

A part holds the masks of some consecutive images. It is written whole or not at all. Parts are cut in the same way by
every number of processes, so the result does not depend on where an annotation was interrupted.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dasnet_lightning.data.hashing import hash_parts
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.storage.atomic import write_bytes, write_json

FOLDER = ".annotate"
VERSION = 1


@dataclass(frozen=True)
class ImageMasks:
    """Masks of one image.

    Attributes:
        objects: position of each object in its record, the run-length counts of its mask, and its quality.
        fault: why the image could not be segmented; empty if it could.
    """

    objects: list[tuple[int, str, float]]
    fault: str = ""


class Journal:
    """The journal of an output folder.

    Args:
        out: the output folder.
        identity: what the result depends on, by name; a journal with another identity is refused.

    Raises:
        ConfigError: the folder is not empty and holds no annotation, or one of another identity.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.out, self.folder = out, out / FOLDER
        self.staging = self.folder / "assembled"
        self.identity = json.loads(json.dumps({"version": VERSION, **identity}))
        self._state_file = self.folder / "state.json"
        self._open()

    @property
    def stage(self) -> str:
        """The state of the annotation: "segment", "move" or "done"."""
        return str(self._read()["stage"])

    @property
    def result(self) -> dict[str, Any]:
        """The result that `assembled` noted."""
        return dict(self._read().get("result", {}))

    def has_part(self, number: int) -> bool:
        """Return whether a part is finished and undamaged."""
        return self._load(number) is not None

    def write_part(self, number: int, images: list[ImageMasks]) -> None:
        """Write a part, with a checksum."""
        text = json.dumps([asdict(item) for item in images])
        write_bytes(self._part_file(number), f"{hash_parts([text.encode()])}\n{text}\n".encode(), synced=False)

    def read_part(self, number: int) -> Iterator[ImageMasks]:
        """Yield the images of a finished part."""
        for item in self._load(number) or []:
            yield ImageMasks([(place, counts, quality) for place, counts, quality in item["objects"]], item["fault"])

    def begin_assembly(self) -> Path:
        """Return an empty folder for the data set that is assembled."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)
        return self.staging

    def assembled(self, result: Mapping[str, Any]) -> None:
        """Note that the data set is complete, with its result."""
        self._write("move", result)

    def move(self) -> None:
        """Move the data set to its place and remove all else; an interrupted move continues."""
        result = self.result
        for path in sorted(self.staging.iterdir()) if self.staging.is_dir() else ():
            path.replace(self.out / path.name)
        self._write("done", result)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self._state_file:
                path.unlink()

    def _open(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out {self.out}: is a file, expected a folder")
        if not self._state_file.is_file():
            others = [path.name for path in self.out.iterdir() if path != self.folder] if self.out.is_dir() else []
            if others:
                raise ConfigError(
                    f"--out {self.out}: is not empty and holds no annotation to continue, name an empty or new folder"
                )
            try:
                (self.folder / "parts").mkdir(parents=True, exist_ok=True)
                self._write("segment", {})
            except OSError as error:
                raise ConfigError(f"--out {self.out}: cannot be written ({error.strerror or error})") from error
        before = self._read()["identity"]
        names = {**before, **self.identity}
        differing = [name for name in names if before.get(name) != self.identity.get(name)]
        if differing:
            raise ConfigError(
                f"--out {self.out}: holds an annotation with another {' and '.join(differing)}; name another folder, or "
                "repeat the command that began it"
            )

    def _part_file(self, number: int) -> Path:
        return self.folder / "parts" / f"{number:06d}.json"

    def _load(self, number: int) -> list[dict[str, Any]] | None:
        file = self._part_file(number)
        if not file.is_file():
            return None
        checksum, _, text = file.read_text(encoding="utf-8").partition("\n")
        if hash_parts([text.rstrip("\n").encode()]) != checksum:
            return None
        content: list[dict[str, Any]] = json.loads(text)
        return content

    def _read(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self._state_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._state_file}: cannot be read ({error}), remove {self.out} and begin anew"
            ) from error
        return content

    def _write(self, stage: str, result: Mapping[str, Any]) -> None:
        write_json(self._state_file, {"identity": self.identity, "stage": stage, "result": dict(result)})
