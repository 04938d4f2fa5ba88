"""The Semantic Boundaries Dataset: masks of the objects in VOC's photographs, without boxes.

The box of an object is the bounding box of its mask, so the file of an image is opened when the records are read, unlike
those of other sources; pixels are kept from the training until `load_masks`. Only inst/ is read: the maps in cls/ follow.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from dasnet_lightning.data.checks import Box, Fix, RecordsError, check_fix, locate_files
from dasnet_lightning.data.masks import collect_masks
from dasnet_lightning.data.planes import pack_picture
from dasnet_lightning.data.reading import RawImage, RawObject, read_images
from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, Problem
from dasnet_lightning.data.sbd_files import Instances, find_sbd_root, read_instances, read_sbd_list
from dasnet_lightning.data.voc_files import VOC_CLASSES
from dasnet_lightning.errors import DataError


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
