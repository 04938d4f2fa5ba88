"""The image files that a command is given, and the files that it writes beside them."""

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path


def find_images(given: Sequence[str], out: Path) -> tuple[list[Path], Counter[str]]:
    """Find the images among the arguments.

    Args:
        given: files, folders (searched recursively) and glob patterns.
        out: output folder, left out inside the folders.

    Returns:
        The image files, each once, in order, and the number of files that were skipped, by kind. A file that is given
        by its name is never skipped.

    Raises:
        DataError: an argument matches no image.
    """
    from dasnet_lightning.data.images import IMAGE_SUFFIXES
    from dasnet_lightning.errors import DataError

    found: dict[Path, Path] = {}
    skipped: dict[Path, str] = {}
    for argument in given:
        paths = _expand(argument, out)
        kinds = {path: "" if path == Path(argument).expanduser() else _skipped_kind(path) for path in paths}
        skipped |= {path.resolve(): kind for path, kind in kinds.items() if kind}
        images = [path for path in paths if not kinds[path]]
        if not images:
            counts = Counter(kind for kind in kinds.values() if kind)
            instead = "".join(f", {count:,} {kind}" for kind, count in sorted(counts.items()))
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise DataError(
                f"{argument}: no image found{instead}; expected a file, a folder or a pattern of images ({suffixes})"
            )
        for path in images:
            found.setdefault(path.resolve(), path)
    return list(found.values()), Counter(kind for path, kind in skipped.items() if path not in found)


def _skipped_kind(path: Path) -> str:
    """Return the kind of a file that is not read as an image, "" for an image."""
    from dasnet_lightning.data.images import IMAGE_SUFFIXES

    if path.name.startswith("._"):
        return "._* (macOS resource forks)"
    suffix = path.suffix.lower()
    return "" if suffix in IMAGE_SUFFIXES else suffix or "without a suffix"


def name_pictures(paths: Iterable[Path], out: Path) -> list[Path]:
    """Return the picture file of each image: its stem, numbered if that would overwrite a picture or an image."""
    images = list(paths)
    taken = {str(path.resolve()).casefold() for path in images}  # some file systems ignore case
    pictures = []
    for image in images:
        picture, number = out / f"{image.stem}.png", 1
        while str(picture.resolve()).casefold() in taken:
            number += 1
            picture = out / f"{image.stem}_{number}.png"
        taken.add(str(picture.resolve()).casefold())
        pictures.append(picture)
    return pictures


def _expand(argument: str, out: Path) -> list[Path]:
    """Return the files that an argument names, in order, without those in the output folder below it."""
    path = Path(argument).expanduser()
    if path.is_file():
        return [path]
    entries = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = sorted(entry for entry in entries if entry.is_file())
    written = out.resolve()
    if not path.is_dir() or path.resolve() not in written.parents:
        return files
    return [file for file in files if not file.resolve().is_relative_to(written)]


def make_folder(option: str, folder: Path | None) -> None:
    """Make a folder for the results of an option, such as --out; None does nothing.

    Raises:
        ConfigError: it is a file, or cannot be made.
    """
    from dasnet_lightning.errors import ConfigError

    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{option} {folder}: is a file, expected a folder") from error
    except OSError as error:
        raise ConfigError(f"{option} {folder}: cannot be made ({error.strerror or error})") from error
