"""The Semantic Boundaries Dataset: masks of the objects in VOC's photographs, without boxes.

The box of an object is the bounding box of its mask, so the file of an image is opened when the records are read, unlike
those of other sources; pixels are kept from the training until `load_masks`. Only inst/ is read: the maps in cls/ follow.

The files of the Semantic Boundaries Dataset: where the root is, which images a list names, what one .mat says.

A .mat is a MATLAB file of version 5: a header of 128 bytes, then elements that may be compressed. They are inflated here,
up to a limit, before scipy sees them, so a file that is made to fill the memory costs nothing.
"""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from dasnet_lightning.data.images import describe_file
from dasnet_lightning.data.packed_masks import pack_picture
from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, Problem
from dasnet_lightning.data.sources.checks import Box, Fix, RecordsError, check_fix, locate_files
from dasnet_lightning.data.sources.masks import collect_masks
from dasnet_lightning.data.sources.raw import RawImage, RawObject, read_images
from dasnet_lightning.data.sources.voc_xml import VOC_CLASSES, read_ids
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


class SBDSource:
    """One split of SBD.

    root: the folder with img and inst, or one above it. split: a list beside them, or "all" for train and val together.
    class_names: background first, VOC's 20 among them; None means VOC's 20. allow_missing: leave out images without image
    or instance file, and list them. fix: "drop" leaves out objects without a pixel, and lists them. Raises RecordsError
    (a DataError) with everything that cannot be used otherwise.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        class_names: Sequence[str] | None = None,
        allow_missing: bool = False,
        fix: Fix = "error",
    ) -> None:
        check_fix(fix)
        self.root = _find_root(Path(root))
        self.split = split
        list_file, image_ids = read_sbd_list(self.root, split)
        self.class_names = VOC_CLASSES if class_names is None else tuple(class_names)
        self.category_ids: Mapping[int, int | str] = {}
        paths, missing = _locate(self.root, list_file, image_ids)
        if missing and not allow_missing:
            raise RecordsError(missing, f"{len(missing)} images cannot be used; restore them, or allow missing images.")
        images = _read_raw(self.root, paths, _map_labels(self.root, self.class_names))
        records, problems = read_images(images, self.class_names, "object", fix)
        self.records: tuple[ImageRecord, ...] = tuple(records)
        note = Problem(self.root / "inst", "boxes", "SBD has none, each is the bounding box of its mask", "warning")
        self.problems: tuple[Problem, ...] = (note, *missing, *problems)

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Open the instance file of an image and cut out the objects asked for."""
        objects = [record.objects[index] for index in indices]
        picture = read_instances(_inst(self.root, record.image_id)).picture
        # an object id ends in its index in the map, which refused objects do not shift
        planes = pack_picture(picture, [int(item.object_id.rsplit("/", 1)[1]) for item in objects])
        return collect_masks(planes, [item.box for item in objects], [""] * len(objects))


def mask_boxes(picture: Integer[np.ndarray, "H W"], count: int) -> list[Box | None]:
    """The bounding boxes (edges) of the objects 1 to `count` of an index map, None for one without a pixel."""
    from scipy.ndimage import find_objects

    windows = find_objects(picture, max_label=count) if count else []
    return [None if window is None else _edges(*window) for window in windows]


def _edges(rows: slice, columns: slice) -> Box:
    return float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)


def _inst(root: Path, image_id: str) -> Path:
    return root / "inst" / f"{image_id}.mat"


def _find_root(folder: Path) -> Path:
    root = find_sbd_root(folder)
    if root is None:
        raise DataError(
            f"{folder}: no SBD data set, expected the folders img and inst and the lists train.txt and val.txt"
        )
    if not (root / "inst").is_dir():
        raise DataError(f"{root}: has cls but no inst, whose maps tell the objects apart; unpack the whole archive")
    return root


def _map_labels(root: Path, class_names: Sequence[str]) -> dict[int, int]:
    """The label of each of SBD's class numbers."""
    lacking = [name for name in VOC_CLASSES[1:] if name not in class_names[1:]]
    if lacking:
        raise DataError(f"{root}: SBD has VOC's classes, {lacking} are not among the classes {list(class_names[1:])}")
    return {number: class_names.index(name) for number, name in enumerate(VOC_CLASSES) if number > 0}


def _locate(root: Path, list_file: Path, image_ids: Sequence[str]) -> tuple[dict[str, Path], list[Problem]]:
    """Paths of the images that have both files, and a problem for each of the others."""
    wanted = {f"{image_id}.jpg": image_id for image_id in image_ids}
    found, faults = locate_files(root / "img", wanted)
    maps = locate_files(root / "inst", [f"{image_id}.mat" for image_id in image_ids])[0]
    faults |= {name: f"has no usable instance file {_inst(root, wanted[name])}" for name in found
               if f"{wanted[name]}.mat" not in maps}  # fmt: skip
    paths = {wanted[name]: path for name, path in found.items() if name not in faults}
    return paths, [Problem(list_file, f"image '{name}'", reason, "refused") for name, reason in faults.items()]


def _read_raw(root: Path, paths: Mapping[str, Path], labels: Mapping[int, int]) -> list[RawImage]:
    images, broken = [], []
    for image_id, path in paths.items():
        file = _inst(root, image_id)
        try:
            images.append(_describe(image_id, path, file, read_instances(file), labels))
        except DataError as error:
            broken.append(Problem(file, f"image '{path.name}'", str(error).removeprefix(f"{file}: "), "refused"))
    if broken:
        raise RecordsError(broken, f"{len(broken)} files cannot be used; unpack them from the archive again.")
    return images


def _describe(image_id: str, path: Path, file: Path, instances: Instances, labels: Mapping[int, int]) -> RawImage:
    boxes = mask_boxes(instances.picture, len(instances.labels))
    objects = tuple(
        RawObject(
            object_id=f"{image_id}/{place}",
            label=labels[number],
            box=box,
            shown="",
            mask=MaskState.PRESENT,
            ignore=False,
            reason="has no pixel in the map of objects" if box is None else "",
        )
        for place, (number, box) in enumerate(zip(instances.labels, boxes, strict=True), start=1)
    )
    height, width = instances.picture.shape
    return RawImage(image_id, path.name, path, (height, width), file, objects)


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
        raise DataError(f"{file}: cannot be read as a MATLAB file, {_describe_file(file)} ({error})") from error
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


def _describe_file(file: Path) -> str:
    if not file.is_file():
        return describe_file(file)
    with file.open("rb") as stream:
        head = stream.read(10)
    if head == b"MATLAB 7.3":
        return "it was saved in version 7.3, expected version 5 ('save -v7')"
    return "it is truncated or damaged" if head == b"MATLAB 5.0" else describe_file(file, "MATLAB file")
