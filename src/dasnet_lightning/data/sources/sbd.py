"""Semantic Boundaries Dataset: masks of the objects in VOC's photographs, without boxes.

The box of an object is the bounding box of its mask. Unlike in other sources, reading the records therefore opens the
mask file of every image; training still gets its masks only from `load_masks`. Only inst/ is read, because the class maps
in cls/ follow from it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from dasnet_lightning.data.hashing import hash_file
from dasnet_lightning.data.packed_masks import pack_index_map
from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, Problem, Source
from dasnet_lightning.data.sources.checks import Box, Fix, RecordsError, check_fix, join_names, locate_files
from dasnet_lightning.data.sources.masks import collect_masks
from dasnet_lightning.data.sources.matlab import load_variable
from dasnet_lightning.data.sources.raw import RawImage, RawObject, read_images
from dasnet_lightning.data.sources.voc_lists import read_ids
from dasnet_lightning.data.sources.voc_xml import VOC_CLASSES
from dasnet_lightning.errors import DataError

ROOT_CANDIDATES = (".", "dataset", "benchmark_RELEASE/dataset")  # as the archive unpacks
JOINED_SPLIT = "all"  # train and val together


@dataclass(frozen=True, eq=False)
class Instances:
    """Content of one file of inst/: an index map of the objects (0 is background), and the class of object 1, 2, ..."""

    index_map: Integer[np.ndarray, "H W"]
    labels: tuple[int, ...]


class SBDSource(Source):
    """One split of SBD.

    Args:
        root: the folder with img and inst, or one above it.
        split: name of a list file, or "all" for train and val together.
        class_names: names by label, background first, with VOC's 20 among them; None means VOC's 20.
        allow_missing: leave out images without image or instance file and report them as problems.
        fix: "drop" leaves out objects without a pixel and reports them as problems.

    Raises:
        RecordsError: lists everything that cannot be used and that no option accepts.
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
        self.root = _require_root(Path(root))
        self.split = split
        list_file, image_ids = read_sbd_list(self.root, split)
        self.files = (list_file,)
        self.class_names = VOC_CLASSES if class_names is None else tuple(class_names)
        paths, missing = _locate_images(self.root, list_file, image_ids)
        if missing and not allow_missing:
            raise RecordsError(missing, f"{len(missing)} images cannot be used; restore them, or allow missing images.")
        images = _build_raw_images(self.root, paths, _map_labels(self.root, self.class_names))
        records, problems = read_images(images, self.class_names, "object", fix)
        self.records = tuple(records)
        note = Problem(self.root / "inst", "boxes", "SBD has none, each is the bounding box of its mask", "warning")
        self.problems = (note, *missing, *problems)

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Open the instance file of an image and cut out the requested objects."""
        objects = [record.objects[index] for index in indices]
        index_map = read_instances(_instance_file(self.root, record.image_id)).index_map
        # an object id ends in its index in the map, which refused objects do not shift
        packed = pack_index_map(index_map, [int(item.object_id.rsplit("/", 1)[1]) for item in objects])
        return collect_masks(packed, [item.box for item in objects], [""] * len(objects))

    def mask_digest(self, record: ImageRecord) -> str:
        """Return a digest of the bytes of an image's instance file."""
        return hash_file(_instance_file(self.root, record.image_id))


def find_sbd_root(folder: Path) -> Path | None:
    """Find the folder with img and with inst or cls, at or below `folder`; None if there is none."""
    candidates = (folder / candidate for candidate in ROOT_CANDIDATES)
    return next((root for root in candidates if _is_root(root)), None)


def list_sbd_splits(root: Path) -> dict[str, tuple[Path, ...]]:
    """Return the list files of each split; "all" joins train and val if both exist."""
    splits: dict[str, tuple[Path, ...]] = {path.stem: (path,) for path in sorted(root.glob("*.txt"))}
    if JOINED_SPLIT not in splits and {"train", "val"} <= set(splits):
        splits[JOINED_SPLIT] = (*splits["train"], *splits["val"])
    return splits


def read_sbd_list(root: Path, split: str) -> tuple[Path, tuple[str, ...]]:
    """Return the first list file of a split and the image ids in all of its files.

    Raises DataError if a list is missing or empty, or if an id is repeated.
    """
    splits = list_sbd_splits(root)
    if split not in splits:
        known = f"the folder has the lists {join_names(list(splits))}" if splits else "expected train.txt and val.txt"
        raise DataError(f"{root}: has no list {split}.txt, {known}")
    ids = [image_id for file in splits[split] for image_id in read_ids(file)]
    repeated = sorted(image_id for image_id, count in Counter(ids).items() if count > 1)
    if repeated:
        names = " and ".join(file.name for file in splits[split])
        raise DataError(
            f"{root}: {len(repeated)} image ids are in both {names}: {join_names(repeated)}; list each image once"
        )
    return splits[split][0], tuple(ids)


def read_instances(file: Path) -> Instances:
    """Read one file of inst/. Raises DataError if it is damaged or another kind of file."""
    content = load_variable(file, "GTinst")
    try:
        index_map = np.asarray(content["Segmentation"][0, 0])
        labels = np.asarray(content["Categories"][0, 0]).ravel()
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: GTinst has no Segmentation or no Categories, expected a file of SBD's inst/"
        ) from error
    if index_map.ndim != 2 or index_map.dtype.kind not in "ub" or 0 in index_map.shape:
        raise DataError(f"{file}: Segmentation is {index_map.dtype} {index_map.shape}, expected a map of indices")
    if labels.dtype.kind not in "uif" or (labels != np.round(labels)).any():
        raise DataError(f"{file}: Categories is not a list of class numbers, expected a file of SBD's inst/")
    top = int(index_map.max())
    if top > len(labels):
        raise DataError(f"{file}: Segmentation has index {top} but Categories {len(labels)} objects, unpack it again")
    unknown = [int(label) for label in labels if not 1 <= label < len(VOC_CLASSES)]
    if unknown:
        raise DataError(f"{file}: category {unknown[0]} is unknown, expected VOC's 1 to {len(VOC_CLASSES) - 1}")
    return Instances(index_map, tuple(int(label) for label in labels))


def mask_boxes(index_map: Integer[np.ndarray, "H W"], count: int) -> list[Box | None]:
    """Return the bounding boxes (edges) of the objects 1 to `count` of an index map; None for one without a pixel."""
    from scipy.ndimage import find_objects

    windows = find_objects(index_map, max_label=count) if count else []
    return [None if window is None else _window_edges(*window) for window in windows]


def _window_edges(rows: slice, columns: slice) -> Box:
    return float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)


def _instance_file(root: Path, image_id: str) -> Path:
    return root / "inst" / f"{image_id}.mat"


def _is_root(folder: Path) -> bool:
    return (folder / "img").is_dir() and ((folder / "inst").is_dir() or (folder / "cls").is_dir())


def _require_root(folder: Path) -> Path:
    root = find_sbd_root(folder)
    if root is None:
        raise DataError(
            f"{folder}: not an SBD data set, expected the folders img and inst and the lists train.txt and val.txt"
        )
    if not (root / "inst").is_dir():
        raise DataError(f"{root}: has cls but no inst, whose maps separate the objects; unpack the whole archive")
    return root


def _map_labels(root: Path, class_names: Sequence[str]) -> dict[int, int]:
    """Return the label of each of SBD's class numbers."""
    missing = [name for name in VOC_CLASSES[1:] if name not in class_names[1:]]
    if missing:
        raise DataError(f"{root}: the classes {list(class_names[1:])} lack SBD's {missing}, name all of VOC's")
    return {number: class_names.index(name) for number, name in enumerate(VOC_CLASSES) if number > 0}


def _locate_images(root: Path, list_file: Path, image_ids: Sequence[str]) -> tuple[dict[str, Path], list[Problem]]:
    """Return the paths of the images that have both files, and a problem for each of the others."""
    id_of = {f"{image_id}.jpg": image_id for image_id in image_ids}
    found, faults = locate_files(root / "img", id_of)
    instance_files, _ = locate_files(root / "inst", [f"{image_id}.mat" for image_id in image_ids])
    faults |= {
        name: f"has no usable instance file, expected {_instance_file(root, id_of[name])}"
        for name in found
        if f"{id_of[name]}.mat" not in instance_files
    }
    paths = {id_of[name]: path for name, path in found.items() if name not in faults}
    return paths, [Problem(list_file, f"image '{name}'", reason, "refused") for name, reason in faults.items()]


def _build_raw_images(root: Path, paths: Mapping[str, Path], labels: Mapping[int, int]) -> list[RawImage]:
    images, broken = [], []
    for image_id, path in paths.items():
        file = _instance_file(root, image_id)
        try:
            images.append(_build_raw_image(image_id, path, file, read_instances(file), labels))
        except DataError as error:
            broken.append(Problem(file, f"image '{path.name}'", str(error).removeprefix(f"{file}: "), "refused"))
    if broken:
        raise RecordsError(broken, f"{len(broken)} files cannot be used; unpack them from the archive again.")
    return images


def _build_raw_image(
    image_id: str, path: Path, file: Path, instances: Instances, labels: Mapping[int, int]
) -> RawImage:
    boxes = mask_boxes(instances.index_map, len(instances.labels))
    objects = tuple(
        RawObject(
            object_id=f"{image_id}/{index}",
            label=labels[class_number],
            box=box,
            shown="",
            mask=MaskState.PRESENT,
            ignore=False,
            reason="has no pixel in the map of objects" if box is None else "",
        )
        for index, (class_number, box) in enumerate(zip(instances.labels, boxes, strict=True), start=1)
    )
    height, width = instances.index_map.shape
    return RawImage(image_id, path.name, path, (height, width), file, objects)
