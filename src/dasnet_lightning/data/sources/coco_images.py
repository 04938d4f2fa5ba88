"""Image files of a COCO file: their paths and sizes, also if names lead elsewhere or sizes are missing."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dasnet_lightning.data.images import image_size
from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.checks import RecordsError, locate_files, unsafe_path
from dasnet_lightning.data.sources.coco_json import CocoFile
from dasnet_lightning.data.sources.image_names import is_url, match_by_name
from dasnet_lightning.errors import DataError

UNKNOWN_SIZE = (1, 1)  # of an image that is missing and whose size is not in the file


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files of a COCO file.

    Attributes:
        paths: the file of each image by its name; missing ones are left out.
        sizes: (height, width) by image id, UNKNOWN_SIZE if it cannot be known.
        known_sizes: ids of the images whose size is known.
        missing: a problem for each missing image.
        notes: warnings that count names and sizes that were found in another way.
    """

    paths: dict[str, Path]
    sizes: dict[int | str, tuple[int, int]]
    known_sizes: frozenset[int | str]
    missing: tuple[Problem, ...]
    notes: tuple[Problem, ...]


def choose_image_root(file: CocoFile, candidates: Iterable[Path]) -> Path:
    """Return the first folder that contains one of the file's first 50 images. Raises DataError with the folders tried.

    If no folder does, names are compared without their folders.
    """
    folders = list(dict.fromkeys(candidates))
    names = [str(image["file_name"]) for image in file.images[:50]]
    for folder in folders:
        if locate_files(folder, names)[0]:
            return folder
    for folder in folders:
        if match_by_name(folder, names):
            return folder
    tried = ", ".join(str(folder) for folder in folders)
    first = f"the URL '{names[0]}'; download them" if is_url(names[0]) else f"'{names[0]}'"
    raise DataError(
        f"{file.path}: none of its images was found (the first is {first}), searched {tried}; "
        "put the images into one of these folders"
    )


def locate_images(file: CocoFile, root: Path, allow_missing: bool) -> ImageFiles:
    """Find the image files and their sizes.

    Raises:
        RecordsError: names lead out of the folder, or images are missing and `allow_missing` is not set.
    """
    names = [image["file_name"] for image in file.images]
    paths, faults = locate_files(root, names)
    foreign = [name for name in faults if is_url(name) or unsafe_path(name)] if paths else list(faults)
    matched = match_by_name(root, foreign)
    paths |= matched
    faults = {name: _describe_fault(name, reason) for name, reason in faults.items() if name not in matched}
    notes = _notes_on_names(file, root, matched)
    unsafe = [name for name, reason in faults.items() if not is_url(name) and (unsafe_path(name) or "link" in reason)]
    if unsafe:
        refused = [Problem(file.path, f"image '{name}'", faults[name], "refused") for name in unsafe]
        raise RecordsError(refused, f"{len(refused)} file names are refused; write paths inside {root}.")
    sizes, unreadable = _read_sizes(file, paths)
    faults |= unreadable
    paths = {name: path for name, path in paths.items() if name not in unreadable}
    missing = [Problem(file.path, f"image '{name}'", reason, "refused") for name, reason in faults.items()]
    if missing and not allow_missing:
        advice = f"{len(missing)} of {len(file.images)} images are missing; restore them, or allow missing images."
        raise RecordsError(missing, advice)
    measured = sum(_has_no_size(image) and image["id"] in sizes for image in file.images)
    if measured:
        text = f"{measured:,} images without width and height got the size of their image file"
        notes.append(Problem(file.path, "images", text, "warning"))
    all_sizes = {image["id"]: sizes.get(image["id"], UNKNOWN_SIZE) for image in file.images}
    return ImageFiles(paths, all_sizes, frozenset(sizes), tuple(missing), tuple(notes))


def _describe_fault(name: str, reason: str) -> str:
    if is_url(name):
        return "the name is a URL, expected a file in the image folder; download the image and put it there"
    return reason


def _notes_on_names(file: CocoFile, root: Path, matched: dict[str, Path]) -> list[Problem]:
    """Return a warning for URLs and one for paths that were replaced by the file of the same name."""
    notes = []
    for kind, names in (
        ("URLs", [name for name in matched if is_url(name)]),
        ("paths that do not exist in the image folder", [name for name in matched if not is_url(name)]),
    ):
        if names:
            used = matched[names[0]].relative_to(root).as_posix()
            text = f"{len(names):,} names are {kind}; files of the same name are used, '{used}' for '{names[0]}'"
            notes.append(Problem(file.path, "images", text, "warning"))
    return notes


def _has_no_size(image: dict[str, object]) -> bool:
    return image.get("height") is None or image.get("width") is None


def _read_sizes(file: CocoFile, paths: dict[str, Path]) -> tuple[dict[int | str, tuple[int, int]], dict[str, str]]:
    """Return the known sizes by image id, and why the size of an image file cannot be read by name."""
    sizes: dict[int | str, tuple[int, int]] = {}
    faults: dict[str, str] = {}
    for image in file.images:
        path = paths.get(image["file_name"])
        if not _has_no_size(image):
            sizes[image["id"]] = image["height"], image["width"]
        elif path is not None:
            try:
                sizes[image["id"]] = image_size(path)
            except DataError as error:
                faults[image["file_name"]] = f"it has no width and height and its image cannot be read ({error})"
    return sizes, faults
