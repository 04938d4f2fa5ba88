"""The files of the Semantic Boundaries Dataset: where the root is, which images a list names, what one .mat says.

A .mat is a MATLAB file of version 5: a header of 128 bytes, then elements that may be compressed. They are inflated here,
up to a limit, before scipy sees them, so a file that is made to fill the memory costs nothing.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from dasnet_lightning.data.images import describe_file
from dasnet_lightning.data.voc_files import VOC_CLASSES, read_ids
from dasnet_lightning.errors import DataError

PLACES = (".", "dataset", "benchmark_RELEASE/dataset")
BOTH = "all"  # the split that joins the two lists
HEADER = 128
COMPRESSED = 15  # the type of a compressed element
MAX_BYTES = 256_000_000  # inflated


@dataclass(frozen=True, eq=False)
class Instances:
    """What one file of inst/ says: the index of every pixel's object (0 background), and the class of object 1, 2, ..."""

    picture: Integer[np.ndarray, "H W"]
    labels: tuple[int, ...]


def find_sbd_root(folder: Path) -> Path | None:
    """The folder with img and inst or cls: the folder itself or below it, as the archive unpacks; None where there is none."""
    roots = (folder / place for place in PLACES)
    return next((root for root in roots if (root / "img").is_dir() and _has_maps(root)), None)


def list_sbd_splits(root: Path) -> dict[str, tuple[Path, ...]]:
    """The list files of each split; "all" joins train and val where both exist."""
    found: dict[str, tuple[Path, ...]] = {path.stem: (path,) for path in sorted(root.glob("*.txt"))}
    if BOTH not in found and {"train", "val"} <= set(found):
        found[BOTH] = (*found["train"], *found["val"])
    return found


def read_sbd_list(root: Path, split: str) -> tuple[Path, tuple[str, ...]]:
    """A list file of a split and the image ids in all of its files. Raises DataError where it is missing, empty, or repeats."""
    splits = list_sbd_splits(root)
    if split not in splits:
        known = f"it has {', '.join(splits)}" if splits else "expected train.txt and val.txt"
        raise DataError(f"{root}: no list {split}.txt, {known}")
    ids = [image_id for file in splits[split] for image_id in read_ids(file)]
    twice = sorted({item for item in ids if ids.count(item) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        names = " and ".join(file.name for file in splits[split])
        raise DataError(f"{root}: {len(twice)} image ids are in {names} both: {', '.join(twice[:20])}; list each once")
    return splits[split][0], tuple(ids)


def read_instances(file: Path) -> Instances:
    """Read one file of inst/. Raises DataError that says what the file is where it is none, or is damaged."""
    struct_ = _load(file, "GTinst")
    try:
        picture = np.asarray(struct_["Segmentation"][0, 0])
        labels = np.asarray(struct_["Categories"][0, 0]).ravel()
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: GTinst has no Segmentation or no Categories, expected a file of SBD's inst/"
        ) from error
    if picture.ndim != 2 or picture.dtype.kind not in "ub" or 0 in picture.shape:
        raise DataError(f"{file}: Segmentation is {picture.dtype} {picture.shape}, expected a map of object indices")
    if labels.dtype.kind not in "uif" or (labels != np.round(labels)).any():
        raise DataError(f"{file}: Categories is no list of class numbers")
    if int(picture.max()) > len(labels):
        raise DataError(f"{file}: Segmentation has the index {int(picture.max())}, Categories {len(labels)} objects")
    strange = [int(label) for label in labels if not 1 <= label < len(VOC_CLASSES)]
    if strange:
        raise DataError(f"{file}: category {strange[0]} is unknown, expected VOC's 1 to {len(VOC_CLASSES) - 1}")
    return Instances(picture, tuple(int(label) for label in labels))


def _has_maps(root: Path) -> bool:
    return (root / "inst").is_dir() or (root / "cls").is_dir()


def _load(file: Path, name: str) -> Any:
    """The variable `name` of a MATLAB file."""
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(_inflate(file.read_bytes())), variable_names=(name,))
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        raise DataError(f"{file}: cannot be read as a MATLAB file, {_describe(file)} ({error})") from error
    if name not in content:
        raise DataError(f"{file}: holds no variable {name}, expected a file of SBD's inst/")
    return content[name]


def _inflate(data: bytes) -> bytes:
    """The same file with all elements uncompressed. Raises ValueError where it is cut short or inflates beyond the limit."""
    if not data.startswith(b"MATLAB 5.0") or data[126:HEADER] not in (b"IM", b"MI"):
        raise ValueError("no header of MATLAB 5.0")
    order = "<" if data[126:HEADER] == b"IM" else ">"
    parts, start, room = [data[:HEADER]], HEADER, MAX_BYTES
    while start < len(data):
        kind, length = struct.unpack_from(f"{order}II", data, start)
        end = start + 8 + length
        if end > len(data):
            raise ValueError(f"an element of {length} bytes is cut short")
        if kind == COMPRESSED:
            inflater = zlib.decompressobj()
            parts.append(inflater.decompress(data[start + 8 : end], room))
            if inflater.unconsumed_tail or not inflater.eof:
                raise ValueError("a compressed element is cut short, or larger than any picture needs")
        else:
            parts.append(data[start:end])
        start, room = end, max(room - len(parts[-1]), 1)
    return b"".join(parts)


def _describe(file: Path) -> str:
    if not file.is_file():
        return describe_file(file)
    with file.open("rb") as stream:
        head = stream.read(10)
    if head == b"MATLAB 7.3":
        return "it was saved in version 7.3, expected version 5 ('save -v7')"
    return "it is truncated or damaged" if head == b"MATLAB 5.0" else describe_file(file, "MATLAB file")
