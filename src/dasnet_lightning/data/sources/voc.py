"""VOC data sets (VOCdevkit layout): boxes from the XMLs, masks from SegmentationObject where that file exists.

Reading the records lists the folder of masks and opens none. Object k of the XML (from 1) is index k in the mask's picture.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from PIL import Image

from dasnet_lightning.data.images import describe_file, image_size
from dasnet_lightning.data.packed_masks import empty_planes, pack_picture
from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, Problem
from dasnet_lightning.data.sources.checks import Fix, RecordsError, box_hint, check_class_names, check_fix, locate_files
from dasnet_lightning.data.sources.masks import VOID, check_indices, collect_masks
from dasnet_lightning.data.sources.raw import RawImage, RawObject, read_images
from dasnet_lightning.data.sources.voc_xml import (
    LISTS,
    VOC_CLASSES,
    XmlImage,
    choose_classes,
    find_images,
    find_masks,
    find_voc_root,
    read_split_list,
    read_xml,
)
from dasnet_lightning.errors import DataError

__all__ = ["VOC_CLASSES", "VOCSource", "find_voc_root"]


class VOCSource:
    """One split of a VOC data set.

    root: the folder with Annotations, or one above it. split: a list in one of the folders `lists` of ImageSets, the first
    that has it.
    class_names: background first; None means VOC's 20, or the sorted names of all XMLs where others occur.
    allow_missing: leave out images without image or annotation file, and list them. fix: "drop" leaves out objects that
    cannot be used, and lists them. Raises RecordsError (a DataError) with everything that cannot be used otherwise.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        class_names: Sequence[str] | None = None,
        allow_missing: bool = False,
        fix: Fix = "error",
        lists: Sequence[str] = LISTS,
    ) -> None:
        check_fix(fix)
        self.root = find_voc_root(Path(root))
        self.split = split
        list_file, image_ids = read_split_list(self.root, split, lists)
        paths, missing = _locate(self.root, list_file, image_ids)
        if missing and not allow_missing:
            raise RecordsError(missing, f"{len(missing)} images cannot be used; restore them, or allow missing images.")
        xmls = {item: read_xml(_xml(self.root, item)) for item in image_ids if _xml(self.root, item).is_file()}
        self.category_ids: Mapping[int, int | str] = {}
        self.class_names = choose_classes(self.root, class_names, list(xmls.values()))
        images = _read_raw(self.root, xmls, paths, self.class_names)
        _check_convention(list_file, images)
        records, problems = read_images(images, self.class_names, "object", fix)
        self.records: tuple[ImageRecord, ...] = tuple(records)
        self.problems: tuple[Problem, ...] = (
            *check_class_names(self.root, self.class_names[1:]),
            *missing,
            *problems,
        )
        self._counts = {image.image_id: len(image.objects) for image in images}

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Open the mask picture of an image and cut out the objects asked for.

        An object whose mask cannot be used is not valid and says why. Void (255) pixels come along.
        """
        boxes = [record.objects[index].box for index in indices]
        path = self.root / "SegmentationObject" / f"{record.image_id}.png"
        picture, reason = _open_picture(path, record.size)
        if picture is None:
            return collect_masks(empty_planes(record.size, len(indices)), boxes, [reason] * len(indices))
        # an object id ends in the object's place in the XML, which refused objects do not shift
        places = [int(record.objects[index].object_id.rsplit("/", 1)[1]) for index in indices]
        reason = check_indices(picture, self._counts[record.image_id])
        return collect_masks(pack_picture(picture, places, VOID), boxes, [reason] * len(indices))


def _xml(root: Path, image_id: str) -> Path:
    return root / "Annotations" / f"{image_id}.xml"


def _locate(root: Path, list_file: Path, image_ids: Sequence[str]) -> tuple[dict[str, Path], list[Problem]]:
    """Paths of the images that have both files, and a problem for each of the others."""
    names = find_images(root)
    wanted = {names.get(image_id, f"{image_id}.jpg"): image_id for image_id in image_ids}
    found, faults = locate_files(root / "JPEGImages", wanted)
    faults |= {name: f"has no annotation file {_xml(root, wanted[name])}" for name in found
               if not _xml(root, wanted[name]).is_file()}  # fmt: skip
    paths = {wanted[name]: path for name, path in found.items() if name not in faults}
    return paths, [Problem(list_file, f"image '{name}'", reason, "refused") for name, reason in faults.items()]


def _read_raw(
    root: Path, xmls: Mapping[str, XmlImage], paths: Mapping[str, Path], class_names: Sequence[str]
) -> list[RawImage]:
    labels = {name: label for label, name in enumerate(class_names) if label > 0}
    masks = find_masks(root)
    images, unknown = [], []
    for image_id, xml in xmls.items():
        path, file = paths.get(image_id), _xml(root, image_id)
        has_picture = image_id in masks
        size = xml.size or (image_size(path) if path is not None else (1, 1))
        unknown += [Problem(file, f"object {place}", _unknown_class(item.name, class_names), "refused")
                    for place, item in enumerate(xml.objects, start=1) if item.name not in labels]  # fmt: skip
        objects = tuple(
            RawObject(
                object_id=f"{image_id}/{place}",
                label=labels.get(item.name, 0),
                box=item.box,
                shown=item.shown,
                mask=MaskState.PRESENT if has_picture and item.segmented else MaskState.ABSENT,
                ignore=item.difficult,
            )
            for place, item in enumerate(xml.objects, start=1)
        )
        images.append(RawImage(image_id, path.name if path else f"{image_id}.jpg", path, size, file, objects))
    if unknown:
        raise RecordsError(unknown, f"{len(unknown)} objects have unknown classes; correct them, or name the classes.")
    return images


def _unknown_class(name: str, class_names: Sequence[str]) -> str:
    near = get_close_matches(name, class_names[1:], n=1)
    hint = f", did you mean '{near[0]}'?" if near else f", known: {', '.join(class_names[1:])}"
    return f"class '{name}' is unknown{hint}" if name else "has no class name"


def _check_convention(list_file: Path, images: Sequence[RawImage]) -> None:
    edges = [(item.box, image.size) for image in images for item in image.objects if item.box is not None]
    written = [((x0 + 1, y0 + 1, x1, y1), size) for (x0, y0, x1, y1), size in edges]
    hint = box_hint([(box, size) for box, size in written]) if all(max(box) <= 1 for box, _ in written) else ""
    if hint:
        raise DataError(f"{list_file}: {hint}; correct the XML files")


def _open_picture(path: Path, size: tuple[int, int]) -> tuple[np.ndarray | None, str]:
    """The index picture of the objects, or None and the reason."""
    try:
        with Image.open(path) as picture:
            if (picture.height, picture.width) != size:
                return None, f"{path.name} has {picture.width}x{picture.height} pixels, its image {size[1]}x{size[0]}"
            if picture.mode not in ("P", "L"):
                return None, f"{path.name} has mode {picture.mode}, expected a palette picture of object indices"
            return np.asarray(picture), ""
    except (OSError, SyntaxError, ValueError) as error:
        return None, f"{path.name} cannot be read, {describe_file(path)} ({error})"
